"""What the finished runs of a variant say over its seeds: values by seed, their mean and deviation, differences."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compress_aug.study.words import Measure, RunResult

NEAR = 0.005
"""Two sparsities nearer than this are the same round: global pruning misses its target by a weight or two."""

Read = Callable[[RunResult], float | None]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of one seed is None, not 0."""

    mean: float
    deviation: float | None
    seeds: int


def newest(runs: Sequence[RunResult], variant: str) -> dict[int, RunResult]:
    """The last run of each seed, in the order of the seeds. runs: of one preset, the oldest first.

    Runs of another configuration than the last run's are left out: a mean over both would be of neither.
    """
    own = [run for run in runs if run.variant == variant]
    found = {run.seed: run for run in own if run.configuration == own[-1].configuration}
    return dict(sorted(found.items()))


def values(runs: Sequence[RunResult], variant: str, read: Read) -> dict[int, float]:
    """One number for each seed whose run has it; a number that is none (NaN) is left out.

    read: such as `lambda run: measured(run, "macs")`
    """
    read_off = {seed: read(run) for seed, run in newest(runs, variant).items()}
    return {seed: value for seed, value in read_off.items() if value is not None and math.isfinite(value)}


def measured(run: RunResult, measure: Measure) -> float | None:
    """What a table shows of a run: of the model, or of its exported file for bytes, latency_ms and file_accuracy."""
    figures, file = run.figures, run.figures.file
    if measure in ("bytes", "latency_ms", "file_accuracy"):
        name = "accuracy" if measure == "file_accuracy" else measure
        value = None if file is None else getattr(file, name)
    else:
        value = getattr(figures, measure)
    return None if value is None else float(value)


def accuracy_at(run: RunResult, sparsity: float) -> float | None:
    """The accuracy after the last training at this share of zeros in [0, 1); None if there was none."""
    found = [
        stage.accuracy
        for stage in run.figures.stages
        if stage.word == "train" and stage.sparsity is not None and abs(stage.sparsity - sparsity) <= NEAR
    ]
    return found[-1] if found else None


def sparsities(runs: Sequence[RunResult]) -> list[float]:
    """At which sparsities anything was trained and tested, rising, those nearer than `NEAR` taken as one."""
    trained = sorted(
        stage.sparsity
        for variant in {run.variant for run in runs}
        for run in newest(runs, variant).values()
        for stage in run.figures.stages
        if stage.word == "train" and stage.sparsity is not None and stage.accuracy is not None
    )
    apart: list[float] = []
    for sparsity in trained:
        if not apart or sparsity - apart[-1] > NEAR:
            apart.append(sparsity)
    return apart


def spread(by_seed: Mapping[int, float]) -> Spread | None:
    """Mean and deviation of values by seed; None if there are no values.

    >>> spread({0: 0.25, 1: 0.75, 2: 0.5})
    Spread(mean=0.5, deviation=0.25, seeds=3)
    """
    found = list(by_seed.values())
    if not found:
        return None
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return Spread(statistics.mean(found), deviation, len(found))


def differences(ours: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """ours - other for the seeds that both have.

    >>> differences({0: 0.75, 1: 0.5}, {1: 0.25, 2: 0.5})
    {1: 0.25}
    """
    return {seed: value - other[seed] for seed, value in ours.items() if seed in other}
