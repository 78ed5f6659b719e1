"""What the learned schedules of a study stress: when augmentation begins, how often it changes, with what."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from compress_aug.policies import PolicySchedule, curves
from compress_aug.policies.schedule_file import parse_schedule
from compress_aug.study.spread import newest
from compress_aug.study.words import RunResult


@dataclass(frozen=True)
class Learned:
    """One learned schedule, in few numbers.

    without:         epochs before the first policy that changes anything; all of them if there is none
    between_changes: mean epochs that a policy is in force
    strongest:       the most probable operations, at most five: mean probability over epochs and both copies
    """

    name: str
    seed: int
    schedule: PolicySchedule
    without: int
    between_changes: float
    strongest: tuple[tuple[str, float], ...]


def learned(runs: Sequence[RunResult], variant: str) -> list[Learned]:
    """Every learned policy schedule of a variant, seed by seed; schedules of a magnitude are none.

    Raises RecipeError for a text that is no schedule.
    """
    return [
        _learned(name, seed, schedule)
        for seed, run in newest(runs, variant).items()
        for name, text in run.figures.schedules.items()
        if isinstance(schedule := parse_schedule(text, name), PolicySchedule)
    ]


def _learned(name: str, seed: int, schedule: PolicySchedule) -> Learned:
    policies = schedule.expanded(schedule.epochs)
    first = next((epoch for epoch, policy in enumerate(policies) if not policy.is_none), len(policies))
    lives = sum(1 for _ in groupby(policies))
    numbers = curves(schedule)
    means = [sum(column) / len(column) for column in zip(*numbers.probability, strict=True)]
    some = [(name, mean) for name, mean in zip(numbers.operations, means, strict=True) if mean > 0]
    some.sort(key=lambda pair: -pair[1])
    return Learned(name, seed, schedule, first, len(policies) / lives, tuple(some[:5]))
