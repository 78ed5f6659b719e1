"""Every example in the README, in docs/ and in a docstring runs; the README's house map is the house."""

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
    for line, code in blocks(page, "python"):
        # A block that begins with "# FILE" is a file of the reader's, which a later block or recipe names.
        file = re.match(r"# (\w+\.py)\n", code)
        if file:
            (tmp_path / file[1]).write_text(code)
            continue
        # Padded, so that a traceback names the line on the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_on_the_page_is_a_recipe_or_a_part_of_one(page, tmp_path, monkeypatch):
    from compress_aug.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    for line, code in blocks(page, "yaml"):
        head = "" if code.lstrip("# ").startswith("version") or "\nversion:" in code else "version: 1\n"
        body = code if "stages:" in code else "stages:\n" + code
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


def test_the_house_map_names_every_file_with_the_words_it_says_of_itself():
    """One caption a file, the same as the first line of its docstring (for a folder: of its __init__)."""
    text = (ROOT / "README.md").read_text()
    captions = dict(re.findall(r"^[│├└─ ]*([\w./]+)\s{2,}(.+)$", text, re.MULTILINE))
    wrong = []
    for entry in sorted(PACKAGE.iterdir()):
        if entry.name.startswith("__") or not (entry.suffix == ".py" or (entry / "__init__.py").exists()):
            continue
        name = f"{entry.name}/" if entry.is_dir() else entry.name
        source = entry / "__init__.py" if entry.is_dir() else entry
        module = importlib.import_module(f"compress_aug.{entry.stem}")
        said = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
        if captions.get(name, "").rstrip(".") != said:
            wrong.append(f"{source.relative_to(ROOT)} says {said!r}, the map says {captions.get(name)!r}")
    assert wrong == []


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
