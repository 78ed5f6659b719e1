"""Which magnitude of RandAugment serves a net best at each sparsity: every one tried, judged and compared.

Source: arXiv 2305.13232, Eq. 3 and section IV-A. The paper calls the best magnitude optimal, and the largest one
that is no worse than none maximal.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from compress_aug.errors import RecipeError, RunFolderError, TrainingError
from compress_aug.folders import written_whole
from compress_aug.schedule import MAX_MAGNITUDE, Points

Magnitude = int | None
"""M of RandAugment, 0..30; None is no RandAugment at all, which is not M=0."""

Measure = Literal["accuracy", "cross_entropy"]

GRIDS: dict[str, tuple[Magnitude, ...]] = {
    "coarse": (None, 1, 4, 8, 12, 14, 18, 22, 26, 30),
    "paper20": (None, *(round(30 * step / 19) for step in range(20))),
    "full": (None, *range(MAX_MAGNITUDE + 1)),
}
"""Grids by name. arXiv 2305.13232 speaks of 20 experiments without saying which; these twenty are ours."""


@dataclass(frozen=True)
class Outcome:
    """One training: at which sparsity and magnitude, and what it came to.

    accuracy, cross_entropy: on the images that the search judges by, accuracy in [0, 1]; both None where the training
                             broke down
    """

    sparsity: float
    magnitude: Magnitude
    seed: int
    accuracy: float | None
    cross_entropy: float | None
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What the trainings at one sparsity say.

    curve:       magnitude -> (mean accuracy over the seeds, its standard deviation or None for one seed, mean cross
                 entropy), None first; three times None where a training broke down, which is worse than any other
    optimal:     the magnitude of the best mean; None if no augmentation is best
    maximal:     the largest magnitude whose mean is not worse than that of none; None if there is no such
    is_unimodal: whether the means rise to one top and fall from there
    """

    sparsity: float
    curve: Mapping[Magnitude, tuple[float | None, float | None, float | None]]
    optimal: Magnitude
    maximal: Magnitude
    is_unimodal: bool


def optimal_magnitude(accuracies: Mapping[Magnitude, float]) -> Magnitude:
    """The magnitude of the best accuracy; of equal ones the smaller, and none is smaller than 0. NaN is the worst.

    >>> optimal_magnitude({None: 0.5, 4: 0.7, 14: 0.7})
    4
    """
    worth = {magnitude: -math.inf if math.isnan(value) else value for magnitude, value in accuracies.items()}
    return max(_ordered(worth), key=lambda magnitude: worth[magnitude])


def maximal_magnitude(accuracies: Mapping[Magnitude, float], tolerance: float = 0.0) -> Magnitude:
    """The largest magnitude whose accuracy is at most `tolerance` below that of none, even if smaller ones fail.

    tolerance: share in [0, 1)

    Returns None if there is no such magnitude; minus infinity and NaN are those of trainings that broke down. Raises
    RecipeError if none was not tried: it is what is compared with.

    >>> maximal_magnitude({None: 0.5, 4: 0.7, 14: 0.4, 22: 0.5, 30: 0.3})
    22
    """
    if None not in accuracies:
        raise RecipeError("the maximal magnitude compares with no augmentation: put none into the grid")
    least = -math.inf if math.isnan(accuracies[None]) else accuracies[None] - tolerance
    fit = [
        magnitude
        for magnitude, value in accuracies.items()
        if magnitude is not None and value >= least and value > -math.inf
    ]
    return max(fit, default=None)


def is_unimodal(accuracies: Mapping[Magnitude, float]) -> bool:
    """Whether the accuracies, from none to the largest magnitude, rise to one top and fall from there.

    >>> is_unimodal({None: 0.5, 4: 0.7, 14: 0.6}), is_unimodal({None: 0.5, 4: 0.4, 14: 0.6})
    (True, False)
    """
    values = [accuracies[magnitude] for magnitude in _ordered(accuracies)]
    has_fallen = False
    for before, after in pairwise(values):
        if after > before and has_fallen:
            return False
        has_fallen = has_fallen or after < before
    return True


def sweep(
    train: Callable[[float, Magnitude, int], Outcome],
    sparsities: Sequence[float],
    grid: Sequence[Magnitude],
    *,
    refine: int = 2,
    seeds: Sequence[int] = (0,),
    tolerance: float = 0.0,
    by: Measure = "accuracy",
    journal: Path | None = None,
    told: Callable[[Outcome, int, int], None] = lambda outcome, done, total: None,
) -> list[Summary]:
    """Train at every sparsity with every magnitude of the grid, then once more on both sides of the best.

    train:      (sparsity, magnitude, seed) -> Outcome; is called once for each, in order. A number of it that is none
                (NaN, infinite) tells that the training broke down, as None does
    refine:     how far from the best magnitude of the grid the two further ones lie; 0 for none
    by:         what is compared: the larger accuracy or, as the paper's Eq. 3 is written, the smaller cross entropy is
                better
    journal:    a file that keeps each outcome, so that none is trained twice when this is called again
    told:       is called after each outcome with (outcome, done, total); the total grows with the refinement

    Returns a summary for each sparsity, in their order. Raises RunFolderError for a damaged journal, TrainingError
    where every magnitude of the grid broke down.

    >>> def train(sparsity, magnitude, seed):
    ...     accuracy = 0.5 if magnitude is None else 0.6 - abs(magnitude - 10) / 50
    ...     return Outcome(sparsity, magnitude, seed, accuracy, 1.0, 0.0)
    >>> [summary.optimal for summary in sweep(train, [0.0], [None, 4, 12, 30])]
    [10]
    """
    known = _read(journal)
    total = len(sparsities) * (len(grid) + 2 * bool(refine)) * len(seeds)
    summaries = []
    done = 0

    def outcomes(sparsity: float, magnitudes: Iterable[Magnitude]) -> None:
        nonlocal done
        for magnitude in magnitudes:
            for seed in seeds:
                key = (sparsity, magnitude, seed)
                if key not in known:
                    known[key] = _checked(train(*key))
                    _write(journal, known.values())
                done += 1
                told(known[key], done, max(done, total))

    for sparsity in sparsities:
        outcomes(sparsity, grid)
        first = _summary(known.values(), sparsity, grid, tolerance, by)
        if all(accuracy is None for accuracy, _, _ in first.curve.values()):
            raise TrainingError(
                f"Every training of the search at sparsity {sparsity:g} broke down: its loss is no number. Try a "
                "smaller lr."
            )
        best = first.optimal
        beside = [best - refine, best + refine] if refine and best is not None else []
        further: list[Magnitude] = [m for m in beside if 0 <= m <= MAX_MAGNITUDE and m not in grid]
        total -= (2 * bool(refine) - len(further)) * len(seeds)
        outcomes(sparsity, further)
        tried = [*grid, *further]
        summaries.append(_summary(known.values(), sparsity, tried, tolerance, by))
    return summaries


def kept_schedule(summaries: Sequence[Summary]) -> Points:
    """The optimal magnitude as a function of sparsity, for `magnitude:` of later trainings; none counts as 0.

    >>> summary = Summary(0.4, {None: (0.5, None, 1.5), 8: (0.6, None, 1.3)}, 8, 8, True)
    >>> kept_schedule([summary]).points
    {0.4: 8.0}
    """
    return Points(by="sparsity", points={one.sparsity: float(one.optimal or 0) for one in summaries})


def table_rows(summaries: Sequence[Summary]) -> list[dict[str, str]]:
    """A row of short texts for each sparsity: what a table shows of a sweep.

    The column "broke down" is there if there is anything to say in it.
    """
    rows = []
    broken = [[m for m, (accuracy, _, _) in one.curve.items() if accuracy is None] for one in summaries]
    for one, gone in zip(summaries, broken, strict=True):
        best, spread, _ = one.curve[one.optimal]
        plain = one.curve[None][0] if None in one.curve else None
        row = {
            "sparsity": f"{100 * one.sparsity:.3g} %",
            "optimal M": _word(one.optimal),
            "accuracy": _percent(best) + ("" if spread is None else f" ± {100 * spread:.2f}"),
            "without": _percent(plain),
            "maximal M": _word(one.maximal),
            "one top": "yes" if one.is_unimodal else "no",
        }
        rows.append({**row, "broke down": ", ".join(map(_word, gone))} if any(broken) else row)
    return rows


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.2f} %"


def _word(magnitude: Magnitude) -> str:
    return "none" if magnitude is None else str(magnitude)


def _ordered(magnitudes: Iterable[Magnitude]) -> list[Magnitude]:
    return sorted(magnitudes, key=lambda magnitude: -1 if magnitude is None else magnitude)


def _summary(
    outcomes: Iterable[Outcome], sparsity: float, tried: Sequence[Magnitude], tolerance: float, by: Measure
) -> Summary:
    found: dict[Magnitude, list[Outcome]] = {magnitude: [] for magnitude in _ordered(tried)}
    for one in outcomes:
        if one.sparsity == sparsity and one.magnitude in found:
            found[one.magnitude].append(one)
    curve: dict[Magnitude, tuple[float | None, float | None, float | None]] = {}
    worth: dict[Magnitude, float] = {}
    for magnitude, several in found.items():
        accuracies = [one.accuracy for one in several if one.accuracy is not None]
        losses = [one.cross_entropy for one in several if one.cross_entropy is not None]
        if min(len(accuracies), len(losses)) < len(several):
            curve[magnitude], worth[magnitude] = (None, None, None), -math.inf
            continue
        spread = statistics.stdev(accuracies) if len(several) > 1 else None
        accuracy, loss = statistics.mean(accuracies), statistics.mean(losses)
        curve[magnitude] = (accuracy, spread, loss)
        worth[magnitude] = accuracy if by == "accuracy" else -loss
    maximal = maximal_magnitude(worth, tolerance) if None in worth else None
    return Summary(sparsity, curve, optimal_magnitude(worth), maximal, is_unimodal(worth))


_Key = tuple[float, Magnitude, int]


def _read(journal: Path | None) -> dict[_Key, Outcome]:
    if journal is None or not journal.is_file():
        return {}
    try:
        rows = json.loads(journal.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError(f"it holds a {type(rows).__name__}")
        found = [_checked(Outcome(**row)) for row in rows]
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{journal} is damaged ({error}): delete it, and the search begins anew."
        ) from None
    return {(one.sparsity, one.magnitude, one.seed): one for one in found}


def _checked(one: Outcome) -> Outcome:
    """The same, with numbers that are none as None: JSON has no word for them, and they compare with nothing."""
    numbers = (one.accuracy, one.cross_entropy)
    broken = any(number is None or not math.isfinite(number) for number in numbers)
    return replace(one, accuracy=None, cross_entropy=None) if broken else one


def _write(journal: Path | None, outcomes: Iterable[Outcome]) -> None:
    if journal is None:
        return
    journal.parent.mkdir(parents=True, exist_ok=True)
    rounded = [asdict(replace(one, seconds=round(one.seconds, 3))) for one in outcomes]
    with written_whole(journal) as temporary:
        temporary.write_text(json.dumps(rounded, indent=1, allow_nan=False) + "\n", encoding="utf-8")
