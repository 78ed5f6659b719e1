"""What is drawn of a schedule: how likely and how strong each operation is, epoch by epoch. Numbers only."""

from dataclasses import dataclass

from compress_aug.policies.policy import Policy
from compress_aug.policies.schedule import PolicySchedule, Replay
from compress_aug.policies.space import MAX_PROBABILITY, OPERATIONS

Row = tuple[float, ...]
"""A number for each of the fifteen OPERATIONS, in their order."""


@dataclass(frozen=True)
class Curves:
    """Each operation over the epochs, its two copies taken together.

    probability: (epochs, 15), the mean of the two copies, in [0, 1]
    magnitude:   (epochs, 15), the mean of the two copies, in [0, 9], also where the probability is 0
    """

    probability: tuple[Row, ...]
    magnitude: tuple[Row, ...]

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of the fifteen columns."""
        return OPERATIONS

    def normalised_probability(self) -> tuple[Row, ...]:
        """(epochs, 15): `probability` divided by the largest sum that an epoch has over its operations.

        Laid on top of each other, the operations then reach 1 in the strongest epoch, and nowhere more. All
        zeros if no epoch augments.

        Source: the schedule figures of arXiv 2004.08861.
        """
        largest = max(sum(row) for row in self.probability)
        if largest == 0:
            return self.probability
        return tuple(tuple(share / largest for share in row) for row in self.probability)


def curves(schedule: PolicySchedule, epochs: int | None = None, replay: Replay = "proportional") -> Curves:
    """The curves of a schedule.

    epochs: of the training it is replayed in; its own where not given
    replay: as for `PolicySchedule.at`

    Raises RecipeError as `PolicySchedule.expanded` does.

    >>> from compress_aug.policies import Segment
    >>> rotate = Policy.from_vector([3, 7] + [0] * 28 + [5, 2] + [0] * 28)
    >>> drawn = curves(PolicySchedule(2, (Segment(1, Policy.none()), Segment(1, rotate))))
    >>> [row[0] for row in drawn.probability], [row[0] for row in drawn.magnitude]
    ([0.0, 0.4], [0.0, 4.5])
    >>> [row[0] for row in drawn.normalised_probability()]
    [0.0, 1.0]
    """
    policies = schedule.expanded(schedule.epochs if epochs is None else epochs, replay)
    rows = {policy: _means(policy) for policy in set(policies)}
    return Curves(
        probability=tuple(rows[policy][0] for policy in policies),
        magnitude=tuple(rows[policy][1] for policy in policies),
    )


def _means(policy: Policy) -> tuple[Row, Row]:
    half = len(OPERATIONS)
    first, second = policy.probabilities[:half], policy.probabilities[half:]
    probability = tuple((a + b) / 2 / MAX_PROBABILITY for a, b in zip(first, second, strict=True))
    first, second = policy.magnitudes[:half], policy.magnitudes[half:]
    return probability, tuple((a + b) / 2 for a, b in zip(first, second, strict=True))
