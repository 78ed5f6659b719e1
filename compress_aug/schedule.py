"""Numbers that change: over a stage's progress, or with the model's sparsity, parameters or bits. Pure, no torch."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

Fact = Literal["sparsity", "parameters", "bits"]
Facts = Callable[[str], float]
"""Asks the model as it is: facts("sparsity") in [0, 1], facts("parameters") as a share of the model that
entered the recipe, facts("bits") the parameter-weighted mean of weight bits (float counts as 32)."""

# What a fact can be. Parameters are a share of the model that entered, which attached layers make larger than 1.
_RANGES = {"sparsity": (0.0, 1.0), "parameters": (0.0, 100.0), "bits": (1.0, 32.0)}

# Tags of the forms a schedule may have in YAML. They show up in pydantic's error locations, where the marks
# tell them from real keys, so that they can be left out of what users read.
NUMBER, RAMP, HALVING, POINTS, NAME = "<number>", "<ramp>", "<halving>", "<points>", "<name>"

MAX_MAGNITUDE = 30


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ramp(_Form):
    """From `start` to `end` over the stage.

    >>> value(Ramp(start=14, end=4), 0.5)
    9.0
    """

    start: float = Field(strict=True, description="the value at the beginning")
    end: float = Field(strict=True, description="the value at the end")
    shape: Literal["linear", "cosine", "cubic", "step"] = Field(
        "linear",
        description="cubic falls fast first (as in gradual pruning, arXiv 1710.01878); step is a stair",
    )
    steps: int = Field(4, ge=2, description="how many levels the stair has (shape: step only)")


class Halving(_Form):
    """`start`, halved after each share `halve_every` of the stage.

    >>> value(Halving(start=0.4, halve_every=0.3), 0.65)
    0.1
    """

    start: float = Field(strict=True)
    halve_every: float = Field(
        strict=True, gt=0, le=1, description="share of the stage after which the value is halved"
    )


class Points(_Form):
    """Read off the model as it is: straight lines between points, held beyond the ends.

    >>> value(Points(by="sparsity", points={0.0: 14, 0.4: 8}), 0.0, facts=lambda fact: 0.2)
    11.0
    """

    by: Fact
    points: dict[float, float] = Field(min_length=1, description="fact: value")

    @field_validator("points")
    @classmethod
    def _in_order(cls, points: dict[float, float], info: ValidationInfo) -> dict[float, float]:
        fact = info.data.get("by")
        low, high = _RANGES.get(str(fact), (-math.inf, math.inf))
        for place in points:
            if not low <= place <= high:
                share = ", a share and not per cent" if high == 1 else ""
                raise ValueError(f"expected a {fact} in {low:g}..{high:g}{share}, found {place:g}")
        return dict(sorted(points.items()))


def _form(value: Any) -> str | None:
    if isinstance(value, Mapping):
        if "by" in value or "points" in value:
            return POINTS
        return HALVING if "halve_every" in value else RAMP
    if isinstance(value, Ramp | Halving | Points):
        return {Ramp: RAMP, Halving: HALVING, Points: POINTS}[type(value)]
    if isinstance(value, str):
        return NAME
    return NUMBER


Schedule = Annotated[
    Annotated[float, Tag(NUMBER)]
    | Annotated[Ramp, Tag(RAMP)]
    | Annotated[Halving, Tag(HALVING)]
    | Annotated[Points, Tag(POINTS)],
    Discriminator(_form),
]
"""A number, or one of the forms that change."""

NamedSchedule = Annotated[
    Annotated[float, Tag(NUMBER)]
    | Annotated[Ramp, Tag(RAMP)]
    | Annotated[Halving, Tag(HALVING)]
    | Annotated[Points, Tag(POINTS)]
    | Annotated[str, Tag(NAME)],
    Discriminator(_form),
]
"""A schedule, or the name of one that an earlier stage kept (or `none`)."""

AnySchedule = float | Ramp | Halving | Points


def value(schedule: AnySchedule, progress: float, facts: Facts | None = None) -> float:
    """The value at `progress` in [0, 1] of a stage.

    facts: needed by `by:` schedules only; see `Facts`.

    >>> value(0.1, 0.7)
    0.1
    """
    if isinstance(schedule, Ramp):
        return schedule.start + (schedule.end - schedule.start) * _shape(schedule, progress)
    if isinstance(schedule, Halving):
        # The small number keeps 0.3 * 3 = 0.8999... on the right side of the step.
        return float(schedule.start * 0.5 ** math.floor(progress / schedule.halve_every + 1e-9))
    if isinstance(schedule, Points):
        if facts is None:
            raise ValueError(f'a schedule "by: {schedule.by}" needs the model to read it from')
        return _between(schedule.points, facts(schedule.by))
    return float(schedule)


def _shape(ramp: Ramp, progress: float) -> float:
    if ramp.shape == "cosine":
        return (1 - math.cos(math.pi * progress)) / 2
    if ramp.shape == "cubic":
        return 1 - (1 - progress) ** 3
    if ramp.shape == "step":
        return min(math.floor(progress * ramp.steps + 1e-9), ramp.steps - 1) / (ramp.steps - 1)
    return progress


def _between(points: Mapping[float, float], at: float) -> float:
    places = list(points)
    right = bisect_right(places, at)
    if right == 0:
        return points[places[0]]
    if right == len(places):
        return points[places[-1]]
    low, high = places[right - 1], places[right]
    return points[low] + (points[high] - points[low]) * (at - low) / (high - low)


def magnitude(schedule: AnySchedule | None, progress: float, facts: Facts | None = None) -> int | None:
    """The augmentation magnitude at `progress`: a whole number 0..30, or None for no RandAugment at all.

    A value of a changing schedule is rounded to the nearest whole number, and below 1 it means None. A plain
    number is taken at its word: 0 is M=0, at which Equalize and AutoContrast still have their full effect.

    >>> magnitude(Ramp(start=8, end=0), 0.99) is None
    True
    """
    if schedule is None:
        return None
    exact = value(schedule, progress, facts)
    nearest = math.floor(exact + 0.5)
    if isinstance(schedule, int | float):
        return nearest
    return min(nearest, MAX_MAGNITUDE) if nearest >= 1 else None


def extremes(schedule: AnySchedule) -> tuple[float, float]:
    """The smallest and the largest value that the schedule can take: what a range check looks at."""
    if isinstance(schedule, Ramp):
        return min(schedule.start, schedule.end), max(schedule.start, schedule.end)
    if isinstance(schedule, Halving):
        return min(schedule.start, 0.0), max(schedule.start, 0.0)
    if isinstance(schedule, Points):
        return min(schedule.points.values()), max(schedule.points.values())
    return float(schedule), float(schedule)


def over_rounds(ramp: Ramp, rounds: int) -> list[float]:
    """The value of a ramp in each of `rounds` rounds: the last round reaches the end, the first leaves the start.

    >>> over_rounds(Ramp(start=0, end=0.6), 3)
    [0.2, 0.4, 0.6]
    """
    return [round(value(ramp, (n + 1) / rounds), 10) for n in range(rounds)]


def falls(values: list[float]) -> bool:
    """Whether no value is larger than the one before it."""
    return all(later <= earlier for earlier, later in pairwise(values))


def describe(schedule: AnySchedule | str | None) -> str:
    """The schedule in a few characters, for a table.

    >>> describe(Ramp(start=8, end=2)), describe(None), describe(14.0)
    ('8 → 2', 'none', '14')
    """
    if schedule is None:
        return "none"
    if isinstance(schedule, Ramp):
        shape = "" if schedule.shape == "linear" else f" {schedule.shape}"
        return f"{schedule.start:g} → {schedule.end:g}{shape}"
    if isinstance(schedule, Halving):
        return f"{schedule.start:g}, halved every {schedule.halve_every:.0%}"
    if isinstance(schedule, Points):
        return f"by {schedule.by}"
    return schedule if isinstance(schedule, str) else f"{schedule:g}"
