"""Every example in the README, in docs/ and in a docstring runs; the README's house map is the house."""

import ast
import doctest
import importlib
import re
import warnings
from pathlib import Path

import pytest
from toys import tiny_data, tiny_net

from compress_aug.deploy import write

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "compress_aug"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "export" / "README.md"]


def write_file(image_shape):
    write(tiny_net(), Path("model.onnx"), image_shape=image_shape)


def furniture():
    """What an example may take for granted: a model, data for it, a recipe, and the file model.onnx beside it."""
    from compress_aug.recipe import Recipe
    from compress_aug.stages import Prune, Train

    write_file((3, 8, 8))
    recipe = Recipe([Train(epochs=1, batch_size=16), Prune(sparsity=0.4)], name="example")
    return {"model": tiny_net(), "data": tiny_data(), "recipe": recipe, "Train": Train, "Prune": Prune}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    if ">>>" not in Path(module.__file__ or "").read_text():
        return
    found = doctest.testmod(module, optionflags=OPTIONS, extraglobs=furniture(), verbose=False)
    assert found.failed == 0


def blocks(page, language):
    """(line, code) of each fenced block of a language, less those that the page itself calls a sketch."""
    text = page.read_text()
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start()].count("\n") + 2, match[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_the_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"__name__": "__main__"}
    # What a reader of export/README.md has copied to the device.
    write_file((3, 32, 32))
    ran = 0
    for line, code in blocks(page, "python"):
        ran += 1
        # A block that begins with "# FILE" is a file of the reader's, which a later block or recipe names.
        file = re.match(r"# (\w+\.py)\n", code)
        if file:
            (tmp_path / file[1]).write_text(code)
            continue
        # Padded, so that a traceback names the line on the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    assert ran == page.read_text().count("```python"), "no block was passed over"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_on_the_page_is_a_study_a_recipe_or_a_part_of_one(page, tmp_path, monkeypatch):
    from compress_aug.recipe import load_recipe
    from compress_aug.study import load_study

    monkeypatch.chdir(tmp_path)
    for line, code in blocks(page, "yaml"):
        if "study: 1\n" in code:
            study = tmp_path / f"line-{line}.study.yaml"
            study.write_text(code)
            assert load_study(study).runs
            continue
        head = "" if code.lstrip("# ").startswith("version") or "\nversion:" in code else "version: 1\n"
        body = code if re.search(r"^stages:", code, re.MULTILINE) else "stages:\n" + code
        file = tmp_path / f"line-{line}.yaml"
        file.write_text(head + body)
        assert load_recipe(file).stages


def test_every_relative_link_leads_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


OUTSIDE = """\
├── recipes/                     recipes that ship: everyday ones; paper/: the papers' studies and baselines
├── export/                      what leaves for the device, without torch: bench.py, classify.py, targets/*.yaml
├── hatch_build.py               compiles the kernels of compress_aug/native when the package is built
├── benchmarks/                  side-by-side measurements against other loops and tools, one command each
├── docs/                        what each stage does; the five depths of the Python API; what studies found
└── tests/                       test_<module>.py, toys.py; one file a module
"""


def house_map():
    """The tree of the README: every file of the package with the first line of its docstring, and its floor."""
    from test_floors import FLOORS

    rooms = sorted(
        (path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()),
        key=lambda path: (FLOORS.get(path.stem, -1), path.stem),
    )
    lines = ["compress_aug/                    (repository)", "├── compress_aug/"]
    for room in rooms:
        if room.name == "__init__.py":
            lines.append(_entry("│   ├── __init__.py", "the public names, loaded when first asked for"))
            continue
        floor = f"  [{FLOORS[room.stem]}]"
        if room.is_file():
            lines.append(_entry(f"│   ├── {room.name}", _caption(room) + floor))
            continue
        lines.append(_entry(f"│   ├── {room.name}/", _caption(room / "__init__.py") + floor))
        files = [file for file in sorted(room.glob("*.py")) if file.name != "__init__.py"]
        for file in files:
            branch = "└" if file is files[-1] else "├"
            lines.append(_entry(f"│   │   {branch}── {file.name}", _caption(file)))
    lines[-1] = lines[-1].replace("├", "└")
    return "\n".join(lines) + "\n" + OUTSIDE


def _entry(name, caption):
    return f"{name:<32} {caption}"


def _caption(file):
    said = ast.get_docstring(ast.parse(file.read_text())) or ""
    return said.split("\n")[0].rstrip(".")


def test_the_house_map_is_the_house():
    """Every file, with the words that it says of itself. To mend: print(house_map()) and paste it."""
    text = (ROOT / "README.md").read_text()
    assert house_map() in text


def test_public_names_are_sorted_and_there():
    import compress_aug

    names = compress_aug.__all__
    assert names == sorted(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            thing = getattr(compress_aug, name)
            assert getattr(thing, "__doc__", None), f"{name} has no docstring"
    with pytest.raises(AttributeError):
        compress_aug.nothing  # noqa: B018
