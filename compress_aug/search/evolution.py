"""Exploit and explore of population based augmentation, as pure functions of scores, policies and a generator."""

import math
from collections.abc import Sequence
from random import Random

from compress_aug.errors import RecipeError
from compress_aug.policies import MAX_MAGNITUDE, MAX_PROBABILITY, Policy

_LARGEST_STEP = 3


def exploit(scores: Sequence[float], rng: Random, quantile: float = 0.25) -> dict[int, int]:
    """Which members take over from which: each of the worst from one of the best, drawn uniformly.

    scores:   one for each member, larger is better; minus infinity for one whose training broke down
    quantile: share of the members that counts as the worst, and as the best, in (0, 0.5]

    Returns {place of the one that gives up: place of the one it copies}; the others go on as they are. A share of the
    members is rounded up, but never more than half; of equal scores the later member counts as the better one.

    >>> exploit([0.5, 0.9, 0.7, 0.1], Random(0))
    {3: 1}

    Raises RecipeError for a quantile out of range.

    Source: population based training (arXiv 1711.09846, truncation selection), with the quarter of Population Based
    Augmentation (arXiv 1905.05393); how ties and shares are rounded is that of Ray Tune.
    """
    if not 0 < quantile <= 0.5:
        raise RecipeError(f"quantile must be in (0, 0.5], found {quantile:g}")
    count = math.ceil(len(scores) * quantile)
    if count > len(scores) / 2:
        count = len(scores) // 2
    if not count:
        return {}
    order = sorted(range(len(scores)), key=lambda place: scores[place])
    best = order[-count:]
    return {place: rng.choice(best) for place in order[:count]}


def explore(policy: Policy, rng: Random, resample: float = 0.2) -> Policy:
    """A policy near the given one: the 60 numbers change each on its own.

    resample: the probability with which a number is drawn anew from its whole range, in [0, 1]. Otherwise it moves by
              0, 1, 2 or 3, up or down, each as likely, and is held within its range.

    >>> policy = Policy.none()
    >>> explore(policy, Random(0)) == explore(policy, Random(0)) != policy
    True

    Raises RecipeError for a probability out of range.

    Source: the code of Population Based Augmentation (arXiv 1905.05393); ranges as in arXiv 2004.08861.
    """
    if not 0 <= resample <= 1:
        raise RecipeError(f"resample must be a probability in [0, 1], found {resample:g}")

    def changed(number: int, most: int) -> int:
        if rng.random() < resample:
            return rng.randint(0, most)
        step = rng.randint(0, _LARGEST_STEP)
        return min(max(number + (step if rng.random() < 0.5 else -step), 0), most)

    # In the order in which the numbers are stored.
    ends = [MAX_PROBABILITY, MAX_MAGNITUDE] * len(policy.probabilities)
    return Policy.from_vector(
        [changed(number, most) for number, most in zip(policy.vector(), ends, strict=True)]
    )
