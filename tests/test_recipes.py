"""Every shipped recipe: read, planned, and run for two steps of each training on toy data, exports included."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toys import tiny_images

import compress_aug
from compress_aug.data import Data, MemorySource
from compress_aug.errors import RecipeError
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
def test_it_is_planned(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "paper/inherit_prune_a":
        with pytest.raises(RecipeError, match="runs/inherit_prune"):
            load_recipe(name)
        masks_of("inherit_prune")
    rows = load_recipe(name).plan()
    assert rows[0]["stage"] and len(rows) == len(load_recipe(name).stages)


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_what_it_does_and_how_to_run_it(name):
    text = (shipped("recipes") / f"{name}.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0].startswith(f"# {name.rpartition('/')[2]} — ")
    assert any(f"compress-aug run {name}" in line for line in head)


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_the_readme_shows_its_stages_as_they_ship(name, tmp_path):
    page = (Path(__file__).parent.parent / "README.md").read_text()
    shown = re.search(rf"^\*\*`{name}`\*\*.*?^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if name == "quickstart":
        assert shown is None, "the README shows its table"
        return
    assert shown
    shipped_text = (shipped("recipes") / f"{name}.yaml").read_text()
    head = shipped_text[: shipped_text.index("stages:")]
    for line in ("target: raspberry_pi_4\n", "variables: {student_schedule: student}\n"):
        head = head.replace(line, "")
    (tmp_path / "shown.yaml").write_text(head + shown[1])
    assert load_recipe(tmp_path / "shown.yaml").stages == load_recipe(name).stages


def few(name):
    """The recipe with one epoch of 64 images in each training, and without its export."""
    recipe = load_recipe(name)
    stages = [
        stage.model_copy(update={"epochs": 1, "batch_size": 16}) if stage.word == "train" else stage
        for stage in recipe.stages
        if stage.word != "export"
    ]
    return replace(recipe, stages=stages)


def masks_of(name):
    """Run the recipe, quickly, into the folder that its Baseline A looks in."""
    quiet = Console(quiet=True)
    return compress_aug.run(few(name), data=toy(), out=f"runs/{name}", device="cpu", console=quiet)


def seen_by(name):
    """Which images each training of a recipe sees, in their order, and for how many epochs it ships."""
    orders = []

    def fit(training, **keys):
        seen = []
        augment = training._augment
        training._augment = lambda batch, *rest: (seen.extend(batch.index.tolist()), augment(batch, *rest))[1]
        history = compress_aug.fit(training, **keys)
        orders.append(seen)
        return history

    out = f"orders/{name}"
    compress_aug.run(few(name), data=toy(), out=out, device="cpu", console=Console(quiet=True), fit=fit)
    return orders, [stage.epochs for stage in load_recipe(name).stages if stage.word == "train"]


@pytest.mark.parametrize("scheme", ["inherit_prune", "inherit_layers"])
def test_a_scheme_and_its_baselines_see_the_same_images_for_as_long(scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if scheme == "inherit_prune":
        ours = masks_of(scheme)
    orders, epochs = seen_by(scheme)
    assert len(orders) == 2 and orders[0] != orders[1] and len(orders[0]) == 64
    for baseline in "ab":
        assert seen_by(f"paper/{scheme}_{baseline}") == (orders, epochs)
    if scheme == "inherit_prune":
        # Baseline A has our mask, and weights of its own in front of it.
        theirs = compress_aug.load(f"orders/paper/{scheme}_a")
        masks = [dict(net.named_buffers()) for net in (ours.model, theirs)]
        masks = [{k: v for k, v in found.items() if k.endswith("mask")} for found in masks]
        assert masks[0].keys() == masks[1].keys() and len(masks[0]) == 22
        assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
        assert not torch.equal(ours.model.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "paper/inherit_prune_a":
        masks_of("inherit_prune")
    # At its own width this net takes minutes.
    narrow = {"rolewise": {"name": "resnet18", "width": 4}}
    report = compress_aug.check(
        name, model=narrow.get(name), data=toy(), device="cpu", console=Console(quiet=True)
    )
    stages = load_recipe(name).stages
    assert [row["word"] for row in report["stages"]] == [stage.word for stage in stages]
    assert len(report["exports"]) == sum(stage.word == "export" for stage in stages)
