"""What the `search` stage does to find magnitudes: trains a copy for each candidate, and shows the table."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING

from compress_aug.errors import TrainingError
from compress_aug.schedule import Points
from compress_aug.stages.base import Setup, State

if TYPE_CHECKING:
    from torch import nn

    from compress_aug.search import Outcome, Summary
    from compress_aug.stages.search import Search

_JUDGED_AT_A_TIME = 500

# Begins the files of nets that several trainings start from.
_DENSE = "dense-"


def magnitudes(stage: "Search") -> tuple[int | None, ...]:
    """Those of the grid, none first."""
    from compress_aug.search import GRIDS

    if isinstance(stage.grid, list):
        numbers = [value for value in stage.grid if isinstance(value, int)]
        return (*([None] if "none" in stage.grid else []), *sorted(numbers))
    assert stage.grid is not None
    return GRIDS[stage.grid]


def trainings(stage: "Search") -> int:
    """How many there are at most; of the dense model as well, where it is trained first."""
    candidates = _grid_length(stage) + 2 * bool(stage.refine)
    dense = candidates if stage.start == "trained" else 0
    return (candidates * len(stage.sparsity or [0.0]) + dense) * (stage.seeds or 1)


def _grid_length(stage: "Search") -> int:
    # Without torch, which the rooms of the search import: a plan must not wait for it.
    return (
        len(stage.grid)
        if isinstance(stage.grid, list)
        else {"coarse": 10, "paper20": 21, "full": 32}[str(stage.grid)]
    )


def find_magnitudes(stage: "Search", state: State, setup: Setup) -> Points:
    """The optimal magnitude by sparsity. The state's model is copied, not changed.

    Candidates are trained by `compress_aug.fit`, not by the `fit` of the run: all come to their end, to be compared.
    """
    from compress_aug import measure
    from compress_aug.pictures.sweep_drawing import draw_sweep
    from compress_aug.search import kept_schedule, sweep

    sparsities = stage.sparsity or [round(measure.sparsity(state.model), 4)]
    train = _trainer(stage, state, setup)
    if setup.rehearsal:
        train(sparsities[-1], magnitudes(stage)[-1], 0)
        return Points(by="sparsity", points=dict.fromkeys(sparsities, 0.0))
    with setup.counting(stage.title()) as counted:

        def told(outcome: "Outcome", done: int, total: int) -> None:
            counted(done, total)
            word = "no augmentation" if outcome.magnitude is None else f"M {outcome.magnitude}"
            came_to = (
                "broke down"
                if outcome.accuracy is None
                else f"{100 * outcome.accuracy:.2f} %, cross entropy {outcome.cross_entropy:.3f}"
            )
            setup.show(
                f"{done}/{total}: {100 * outcome.sparsity:.3g} % zeros, {word}, seed {outcome.seed}: {came_to}"
            )

        found = sweep(
            train,
            sparsities,
            magnitudes(stage),
            refine=stage.refine or 0,
            seeds=range(stage.seeds or 1),
            tolerance=stage.tolerance or 0.0,
            by="cross_entropy" if stage.judge == "augmented" else "accuracy",
            journal=setup.stage_folder / "outcomes.json",
            told=told,
        )
    # What was started from them is in the journal.
    for path in setup.stage_folder.glob(f"{_DENSE}*.pt"):
        path.unlink()
    schedule = kept_schedule(found)
    _record(stage, setup, found, schedule)
    draw_sweep(
        found,
        setup.stage_folder / "search.png",
        title="Which magnitude serves at which sparsity",
        note=_note(stage),
    )
    return schedule


def _trainer(stage: "Search", state: State, setup: Setup) -> "Callable[[float, int | None, int], Outcome]":
    from compress_aug import measure
    from compress_aug.pruning import mask_smallest
    from compress_aug.search import Outcome, judged, reduced
    from compress_aug.surgery import copy_model
    from compress_aug.training import fit, mixed_seed

    data = reduced(setup.data, stage.train_images, stage.validation_images, is_sample=setup.rehearsal)

    def trained(model: "nn.Module", magnitude: int | None, seed: int, name: str) -> "nn.Module | None":
        """The trained model, None if its loss left the real numbers."""
        given = "none" if magnitude is None else float(magnitude)
        how = stage.train.model_copy(
            update={"augment": stage.train.augment.model_copy(update={"magnitude": given})}
        )
        own = replace(setup, data=data, seed=mixed_seed(setup.seed, "seed", seed), note=lambda line: None)
        training = how.training(replace(state, model=model), own)
        path = setup.stage_folder / f"{name}.pt"
        try:
            setup.fit(training) if setup.rehearsal else fit(training, checkpoint=path)
        except TrainingError:
            if setup.rehearsal:
                raise
            return None
        finally:
            # Even then: later trainings must not find anything of this one on the kept teacher.
            finished = training.finished_model()
        if not name.startswith(_DENSE):
            path.unlink(missing_ok=True)
        return finished

    @cache
    def dense(magnitude: int | None, seed: int) -> "nn.Module | None":
        if stage.start == "model":
            return state.model
        # Its file stays until the sweep is done: a resumed one finds a training there that has ended.
        return trained(copy_model(state.model), magnitude, seed, f"{_DENSE}{magnitude}-{seed}")

    def train(sparsity: float, magnitude: int | None, seed: int) -> Outcome:
        started = time.perf_counter()
        model = dense(magnitude, seed)
        if model is not None:
            model = copy_model(model)
            if sparsity > measure.sparsity(model):
                mask_smallest(model, sparsity, stage.scope or "global")
            model = trained(model, magnitude, seed, f"{sparsity}-{magnitude}-{seed}")
        if model is None:
            return Outcome(sparsity, magnitude, seed, None, None, time.perf_counter() - started)
        augment = stage.train.augment.build(state, setup, epochs=1)
        images = data.validation.batches(_JUDGED_AT_A_TIME)
        if stage.judge == "augmented":
            accuracy, loss = judged(
                model, images, data.normalise, lambda batch: augment(batch, magnitude, 0, setup.seed)
            )
        else:
            accuracy, loss = judged(model, images, data.normalise)
        return Outcome(sparsity, magnitude, seed, accuracy, loss, time.perf_counter() - started)

    return train


def _note(stage: "Search") -> str:
    seeds = f"mean of {stage.seeds} seeds, " if stage.seeds != 1 else "one seed, "
    images = "augmented as in training" if stage.judge == "augmented" else "clean"
    plural = "s" * (stage.train.epochs != 1)
    return f"{seeds}{stage.train.epochs} epoch{plural} each; validation images are {images}"


def _record(stage: "Search", setup: Setup, found: "list[Summary]", schedule: Points) -> None:
    from compress_aug.search import table_rows

    rows = table_rows(found)
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    setup.show("  ".join(key.rjust(width) for key, width in widths.items()))
    for row in rows:
        setup.show("  ".join(row[key].rjust(width) for key, width in widths.items()))
    summaries = [
        {**asdict(one), "curve": [[magnitude, *values] for magnitude, values in one.curve.items()]}
        for one in found
    ]
    setup.record("search", {"kind": "magnitude", "kept": stage.keep, "summaries": summaries})
    points = ", ".join(f"{place:g}: {value:g}" for place, value in schedule.points.items())
    gone = sum(accuracy is None for one in found for accuracy, _, _ in one.curve.values())
    if gone:
        setup.note(
            f"{gone} of the magnitudes tried broke down in training and rank last: a smaller lr may bear them"
        )
    setup.note(f"kept as {stage.keep}: magnitude by sparsity, {{{points}}} (0 is none)")
