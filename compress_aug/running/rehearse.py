"""check: everything that can fail, before any training; each stage is tried once on real data in a folder that goes."""

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from compress_aug.recipe import Recipe
from compress_aug.running.ahead import check_ahead
from compress_aug.running.folder import RunFolder
from compress_aug.running.run import load_inputs, make_fabric, metadata_of, new_report
from compress_aug.running.start import beginning_of, check_data_of_start, copy_start, prepared
from compress_aug.running.walk import Walk, finished_state

STEPS = 2


def check(
    recipe: Recipe | str | Path,
    *,
    model: Any = None,
    data: Any = None,
    target: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    start_from: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Try a recipe without training it: the recipe, the data, each surgery, two steps of each training, the export.

    The arguments are those of `run`. Works on a few hundred images in a temporary folder and leaves nothing
    behind. Parity and budgets of an exported file are not judged, because nothing was learned.

    Returns what report.json of such a rehearsal holds. Raises UserError or WorkError, as `run` would.
    """
    console = console or Console(markup=False, emoji=False)
    began = beginning_of(recipe, start_from)
    recipe, start = prepared(recipe, began, model=model, data=data, target=target, seed=seed)
    outlooks = recipe.foresee(start)
    fabric = make_fabric(device)
    inputs = load_inputs(recipe, console)
    if began:
        check_data_of_start(began, inputs.data)
    check_ahead(recipe, inputs.data)
    few = inputs.data.limited(train=256, test=64)
    with tempfile.TemporaryDirectory(prefix="compress-aug-check-") as temporary:
        folder = RunFolder(Path(temporary))
        if began:
            copy_start(began, folder)
        state = finished_state(folder, recipe, 0, inputs.fresh, fabric.device)
        report = new_report(recipe, inputs, fabric, folder, with_file=False)
        walk = Walk(
            recipe,
            folder,
            few.to(fabric.device),
            inputs.target,
            fabric,
            inputs.fresh,
            console,
            report,
            outlooks,
            fit=two_steps,
            rehearsal=True,
            metadata=metadata_of(recipe, few),
        )
        walk.run(state, [])
    return report


def two_steps(training: Any, *, checkpoint: Path | None = None, progress: Any = None) -> list[dict[str, Any]]:
    """In place of `fit`: enough to see that forward, loss, backward and update work."""
    done = count(1)
    training.epoch(lambda training: next(done) >= STEPS)
    history: list[dict[str, Any]] = training.history
    return history
