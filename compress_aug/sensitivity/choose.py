"""Bits for each layer under a budget of bytes: the choice of least loss, by dynamic programming."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compress_aug.errors import QuantizeError

# So many sizes are told apart; what is lost where a model has more is below a thousandth of the budget.
_STATES = 50_000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def choose_bits(
    losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, Mapping[int, int]], budget: int
) -> dict[str, int]:
    """The bits of each layer whose losses add up to the least while their sizes stay within the budget.

    losses: by name of the layer, then by bits: what the layer costs at these bits, in any unit
    sizes:  by name of the layer, then by bits: in bytes, 0 or more
    budget: in bytes, for all layers together

    A layer with one choice keeps it. Where bytes are left, layers get the most bits that cost no more loss, in the
    order given. Exact as long as no more than 50 000 sizes below the budget matter; beyond, sums that lie close
    together are taken for one another, and the budget is kept all the same.

    Raises QuantizeError if the smallest choice of every layer together is larger than the budget.

    >>> losses = {"stem": {8: 0.0, 4: 0.5}, "body": {8: 0.0, 4: 0.1}}
    >>> choose_bits(losses, {"stem": {8: 10, 4: 5}, "body": {8: 100, 4: 50}}, 60)
    {'stem': 8, 'body': 4}

    Source: the multiple-choice knapsack; that the losses of layers changed alone add up is assumed, as in arXiv
    1911.03852 and 2011.10680.
    """
    names = list(losses)
    if not names:
        return {}
    smallest = {name: min(sizes[name][bits] for bits in losses[name]) for name in names}
    least = sum(smallest.values())
    if least > budget:
        raise QuantizeError(f"The smallest choice takes {least:,} bytes, and the budget is {budget:,} bytes.")
    return _raised(_best(losses, sizes, budget, smallest), losses, sizes, budget)


def _best(
    losses: Mapping[str, Mapping[int, float]],
    sizes: Mapping[str, Mapping[int, int]],
    budget: int,
    smallest: Mapping[str, int],
) -> dict[str, int]:
    """Layer by layer, all (bytes, loss) that can be reached and that no other one beats in both."""
    rest = sum(smallest.values())
    total: Ints = np.zeros(1, np.int64)
    loss: Floats = np.zeros(1, np.float64)
    steps: list[tuple[Ints, Ints]] = []
    for name, costs in losses.items():
        rest -= smallest[name]
        choices = list(costs)
        add = np.array([sizes[name][bits] for bits in choices], np.int64)
        cost = np.array([costs[bits] for bits in choices], np.float64)
        totals, sums = (total[:, None] + add).ravel(), (loss[:, None] + cost).ravel()
        kept = _frontier(totals, sums, budget - rest)
        # Where each kept sum came from: the sum before this layer, and this layer's choice.
        steps.append((kept // len(choices), np.array(choices, np.int64)[kept % len(choices)]))
        total, loss = totals[kept], sums[kept]
    # The frontier falls in loss as it grows in bytes, so that its last point is the best.
    place = len(total) - 1
    chosen: dict[str, int] = {}
    for name, (before, bits) in zip(reversed(list(losses)), reversed(steps), strict=True):
        chosen[name] = int(bits[place])
        place = int(before[place])
    return {name: chosen[name] for name in losses}


def _frontier(totals: Ints, sums: Floats, most: int) -> Ints:
    """Places of the points within `most` bytes that no other beats in both bytes and loss, rising in bytes."""
    order = np.lexsort((sums, totals))
    order = order[totals[order] <= most]
    lowest = np.minimum.accumulate(sums[order])
    better = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    kept: Ints = order[better]
    if len(kept) <= _STATES:
        return kept
    # Of the points in each step of bytes the last, which has the least loss; and the smallest of all, without which
    # a tight budget might not be kept.
    step = totals[kept] * _STATES // (most + 1)
    last = np.concatenate([step[1:] != step[:-1], [True]])
    last[0] = True
    thinned: Ints = kept[last]
    return thinned


def _raised(
    chosen: dict[str, int],
    losses: Mapping[str, Mapping[int, float]],
    sizes: Mapping[str, Mapping[int, int]],
    budget: int,
) -> dict[str, int]:
    """More bits where they cost no loss and the budget allows: what was measured alone may matter together."""
    left = budget - sum(sizes[name][bits] for name, bits in chosen.items())
    raised = {}
    for name, bits in chosen.items():
        room = sizes[name][bits] + left
        costs = losses[name]
        free = [b for b in costs if b >= bits and costs[b] <= costs[bits] and sizes[name][b] <= room]
        raised[name] = max(free)
        left = room - sizes[name][raised[name]]
    return raised
