"""Functions named in a recipe: what is found, what is passed, and what each mistake is told."""

import sys
from pathlib import Path

import pytest

from compress_aug.calls import call, import_call
from compress_aug.errors import DataError, ModelError, RecipeError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "own_module_of_test_calls"
    (tmp_path / f"{name}.py").write_text(
        "number = 3\n"
        "def add(first, second=2, *, third=0): return (first, second, third)\n"
        "def any_of(**arguments): return arguments\n"
        "def broken(): return 1 / 0\n"
        "def _hidden(): pass\n"
    )
    (tmp_path / "own_broken_module.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "own_slip_module.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def told(text: str, **arguments: object) -> str:
    with pytest.raises(RecipeError) as caught:
        call(text, arguments, "the thing")
    return str(caught.value)


def test_the_current_folder_is_searched_only_during_the_import(module: str) -> None:
    before = list(sys.path)
    assert import_call(f"{module}:add", "the thing")(1) == (1, 2, 0)
    assert import_call("os.path:join", "the thing")("a", "b") == str(Path("a") / "b")
    told("own_slip_module:f")
    assert sys.path == before


def test_offered_arguments_go_where_they_are_wanted(module: str) -> None:
    offered = {"second": 20, "third": 30, "fourth": 40}
    assert call(f"{module}:add", {"first": 1, "third": 3}, "x", offered=offered) == (1, 20, 3)
    # A function that takes anything is not offered what it does not name.
    assert call(f"{module}:any_of", {"first": 1}, "x", offered=offered) == {"first": 1}


def test_each_mistake_is_one_sentence(module: str) -> None:
    assert told("resnet20") == 'the thing: expected "package.module:function", found "resnet20".'
    assert told(":f").endswith('found ":f".')
    assert told(f"{module[:-1]}:add").endswith(f'; did you mean "{module}"?')
    assert "there is no module" in told("no_such_module_at_all.inner:f")
    assert told(f"{module}:ad") == f'the thing: module "{module}" has no function "ad"; did you mean "add"?'
    assert "is a int, expected a function or a class" in told(f"{module}:number")
    assert 'has no argument "secnd"; did you mean "second"?' in told(f"{module}:add", first=1, secnd=2)
    assert "missing a required argument: 'first'; it takes first, second, third." in told(f"{module}:add")
    assert told(f"{module}:broken", x=1).endswith('has no argument "x"; it takes none.')
    assert told(f"{module}:broken").endswith("raised ZeroDivisionError: division by zero")
    assert "_hidden" not in told(f"{module}:zzzz")


def test_a_module_that_does_not_import_says_why(module: str) -> None:
    assert told("own_broken_module:f").endswith("does not import: No module named 'no_such_package_at_all'")
    assert "does not import: SyntaxError: " in told("own_slip_module:f")


def test_the_class_of_the_error_is_the_callers_choice() -> None:
    with pytest.raises(ModelError):
        import_call("os:no_such_function", "model", error=ModelError)
    with pytest.raises(DataError):
        call("os:getcwd", {"x": 1}, "data", error=DataError)
