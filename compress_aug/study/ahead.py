"""Before a study begins: the images and nets that its runs name are tried once, so that a mistake is told once."""

import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from compress_aug.errors import UserError
from compress_aug.reading import Document
from compress_aug.recipe import Recipe, recipe_of
from compress_aug.running.ahead import check_ahead
from compress_aug.running.run import Inputs, load_inputs
from compress_aug.study.planned import PlannedRun


def recipe_of_run(run: PlannedRun) -> Recipe:
    """The recipe of a run, called like its variant."""
    return recipe_of(Document(run.variant, run.recipe), name=run.variant, beside=Path())


def look_ahead(runs: Iterable[PlannedRun], console: Console | None = None) -> None:
    """Load the data and the model of each variant, once where they are the same, and try what its stages name.

    runs:    those to do; one seed of each variant is looked at. Where a run waits for another, its stages are left out
    console: shows how far a large folder is decoded

    Raises the UserError that the run would raise.
    """
    inputs: dict[str, Inputs] = {}
    seen: set[str] = set()
    for run in runs:
        if run.variant in seen:
            continue
        seen.add(run.variant)
        recipe = recipe_of_run(run)
        named = json.dumps([run.recipe.get(key) for key in ("data", "model", "target", "seed")])
        if named not in inputs:
            inputs[named] = load_inputs(recipe, console)
        if run.after:
            continue
        try:
            check_ahead(recipe, inputs[named].data)
        except UserError as error:
            error.args = (f"variant {run.variant}: {error}",)
            raise
