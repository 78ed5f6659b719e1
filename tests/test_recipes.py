"""Every shipped recipe: read, planned, and run for two steps of each training on toy data, exports included."""

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toys import tiny_images

import compress_aug
from compress_aug.data import Data, MemorySource
from compress_aug.folders import shipped
from compress_aug.recipe import load_recipe, recipe_names

NAMES = recipe_names()


def toy(size=32, classes=10):
    """Noise in the shape of CIFAR: what a recipe needs to be walked through, not to learn from."""
    parts = []
    for seed, number in enumerate((64, 16, 32)):
        images, _ = tiny_images(number, size=size, seed=seed)
        parts.append(MemorySource(images, torch.arange(number) % classes, torch.arange(number)))
    names = tuple(f"class {n}" for n in range(classes))
    return Data("toy", names, (3, size, size), (0.3,) * 3, (0.2,) * 3, 4, True, *parts)


def test_the_promised_recipes_ship():
    assert {"quickstart", "iterative_prune", "inherit_layers", "qat_w4a4", "structured_int8"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned(name):
    rows = load_recipe(name).plan()
    assert rows[0]["stage"] and len(rows) == len(load_recipe(name).stages)


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_what_it_does_and_how_to_run_it(name):
    text = (shipped("recipes") / f"{name}.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0].startswith(f"# {name.rpartition('/')[2]} — ")
    assert any(f"compress-aug run {name}" in line for line in head)


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_its_stages_as_they_ship(name, tmp_path):
    page = (Path(__file__).parent.parent / "README.md").read_text()
    shown = re.search(rf"^\*\*`{name}`\*\*.*?^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if name == "quickstart":
        assert shown is None, "the README shows its table"
        return
    assert shown
    shipped_text = (shipped("recipes") / f"{name}.yaml").read_text()
    head = shipped_text[: shipped_text.index("stages:")].replace("target: raspberry_pi_4\n", "")
    (tmp_path / "shown.yaml").write_text(head + shown[1])
    assert load_recipe(tmp_path / "shown.yaml").stages == load_recipe(name).stages


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_two_steps(name):
    report = compress_aug.check(name, data=toy(), device="cpu", console=Console(quiet=True))
    stages = load_recipe(name).stages
    assert [row["word"] for row in report["stages"]] == [stage.word for stage in stages]
    assert len(report["exports"]) == sum(stage.word == "export" for stage in stages)
