"""What the sweeps of several seeds say together: one curve of accuracy over magnitude for each sparsity."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from compress_aug.search import Summary, is_unimodal, maximal_magnitude, optimal_magnitude
from compress_aug.study.spread import NEAR, newest
from compress_aug.study.words import RunResult, SweepFigures

Magnitude = int | None


@dataclass(frozen=True)
class Swept:
    """One sparsity of a variant's sweeps.

    summary: of the mean curve over the seeds, at the magnitudes that every seed tried
    optimal: seed -> the best magnitude of that seed's own search; None is no augmentation
    """

    summary: Summary
    optimal: dict[int, Magnitude]


def swept(runs: Sequence[RunResult], variant: str) -> list[Swept]:
    """A variant's sweeps, from the smallest sparsity to the largest; empty where nothing was swept.

    A magnitude counts as broken down if it broke down in any seed, and is worse than all others then, as within a
    search. The largest magnitude that is no worse than none is found without tolerance: a single seed keeps what its
    search found. A sparsity at which no magnitude worked in all seeds is left out.
    """
    by_seed = {seed: run.figures.sweep for seed, run in newest(runs, variant).items()}
    every: list[float] = []
    for sparsity in sorted(one.sparsity for found in by_seed.values() for one in found):
        if not every or sparsity - every[-1] > NEAR:
            every.append(sparsity)
    together = [
        {
            seed: one
            for seed, found in by_seed.items()
            for one in found
            if abs(one.sparsity - sparsity) <= NEAR
        }
        for sparsity in every
    ]
    return [one for sparsity, found in zip(every, together, strict=True) if (one := _swept(sparsity, found))]


def rank(magnitude: Magnitude) -> int:
    """For comparing magnitudes: none is less than 0, which still draws operations."""
    return -1 if magnitude is None else magnitude


def magnitude_word(magnitude: Magnitude) -> str:
    """A magnitude as tables and sentences call it: its number, or none."""
    return "none" if magnitude is None else str(magnitude)


def _swept(sparsity: float, found: dict[int, SweepFigures]) -> Swept | None:
    curves = [{_whole(row[0]): row for row in one.curve} for one in found.values()]
    tried = sorted(set.intersection(*(set(curve) for curve in curves)), key=rank)
    curve: dict[Magnitude, tuple[float | None, float | None, float | None]] = {}
    for magnitude in tried:
        accuracies = [row[magnitude][1] for row in curves]
        known = [value for value in accuracies if value is not None and math.isfinite(value)]
        if len(known) < len(curves):
            curve[magnitude] = (None, None, None)
        elif len(known) == 1:
            curve[magnitude] = (known[0], curves[0][magnitude][2], None)
        else:
            curve[magnitude] = (statistics.mean(known), statistics.stdev(known), None)
    worth = {m: -math.inf if row[0] is None else row[0] for m, row in curve.items()}
    if not worth or max(worth.values()) == -math.inf:
        return None
    only = next(iter(found.values()))
    if len(found) == 1 and _whole(only.optimal) in worth:
        best, largest = _whole(only.optimal), _whole(only.maximal)
    else:
        best, largest = optimal_magnitude(worth), maximal_magnitude(worth) if None in worth else None
    summary = Summary(sparsity, curve, best, largest, is_unimodal(worth))
    return Swept(summary, {seed: _whole(one.optimal) for seed, one in found.items()})


def _whole(magnitude: float | None) -> Magnitude:
    return None if magnitude is None else round(magnitude)
