"""Learned policies on batches of raw images: fifteen operations, each with its own probability and magnitude 0..9."""

from functools import lru_cache
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from compress_aug.augment.draws import Stream, below, draw_words
from compress_aug.augment.operations import Operation
from compress_aug.augment.pipeline import Augmentation, Candidate, Settings
from compress_aug.augment.plan import Plan
from compress_aug.errors import RecipeError
from compress_aug.policies import ENTRIES, MAX_MAGNITUDE, OPERATIONS, Policy, PolicySchedule, Replay
from compress_aug.policies.schedule import check_epochs, check_replay

# The operation of each of PBA's names, and whether its direction is drawn.
_KINDS: dict[str, tuple[Operation, bool]] = {
    "Rotate": (Operation.ROTATE, True),
    "TranslateX": (Operation.TRANSLATE_X, True),
    "TranslateY": (Operation.TRANSLATE_Y, True),
    "Brightness": (Operation.BRIGHTNESS, False),
    "Color": (Operation.COLOR, False),
    "Invert": (Operation.SOLARIZE, False),
    "Sharpness": (Operation.SHARPNESS, False),
    "Posterize": (Operation.POSTERIZE, False),
    "ShearX": (Operation.SHEAR_X, True),
    "Solarize": (Operation.SOLARIZE, False),
    "ShearY": (Operation.SHEAR_Y, True),
    "Equalize": (Operation.EQUALIZE, False),
    "AutoContrast": (Operation.AUTO_CONTRAST, False),
    "Cutout": (Operation.CUTOUT, False),
    "Contrast": (Operation.CONTRAST, False),
}

# How many operations an image gets at most, for each of ten equally likely outcomes: none with probability
# 0.2, one with 0.3, two with 0.5.
_MOST = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])


@lru_cache(maxsize=1)
def policy_arguments() -> NDArray[np.float64]:
    """The argument of every operation of a policy at every magnitude; (15, 10), in the order of OPERATIONS.

    Not all grow with the magnitude: the factor of Brightness, Color, Contrast and Sharpness is 0.1 at 0 (nearly
    black or grey) and 1, which changes nothing, at 5; Posterize keeps 4 bits at 0.

    Source: Population Based Augmentation (arXiv 1905.05393) and its code, whose largest level is 10 while
    magnitudes go to 9.

    >>> policy_arguments()[OPERATIONS.index("Solarize"), [0, 9]].tolist()
    [256.0, 26.0]
    """
    levels = range(MAX_MAGNITUDE + 1)
    factors = [level * 1.8 / 10 + 0.1 for level in levels]
    shears = [level * 0.3 / 10 for level in levels]
    pixels = [float(level) for level in levels]
    table = {
        "Rotate": [float(3 * level) for level in levels],
        "TranslateX": pixels,
        "TranslateY": pixels,
        "Brightness": factors,
        "Color": factors,
        "Invert": [0.0] * len(levels),  # solarize: every value is at least 0
        "Sharpness": factors,
        "Posterize": [4.0 - level * 4 // 10 for level in levels],
        "ShearX": shears,
        "Solarize": [256.0 - level * 256 // 10 for level in levels],
        "ShearY": shears,
        "Equalize": [np.nan] * len(levels),
        "AutoContrast": [np.nan] * len(levels),
        "Cutout": [2.0 * level for level in levels],
        "Contrast": factors,
    }
    arguments = np.array([table[name] for name in OPERATIONS])
    arguments.flags.writeable = False
    return arguments


def draw_policy(
    index: NDArray[np.int64],
    probabilities: NDArray[np.int64],
    magnitudes: NDArray[np.int64],
    *,
    height: int,
    width: int,
    epoch: int = 0,
    seed: int = 0,
    candidate: Candidate = 0,
) -> Plan:
    """What a learned policy does to each image: at most two of its 30 entries.

    index:         (N,), position of each image in the data set
    probabilities: (30,) or (N, 30), in tenths 0..10, in the order of ENTRIES
    magnitudes:    (30,) or (N, 30), 0..9
    height, width: of the images; squares of Cutout lie uniformly in them

    For each image a number is drawn, 0 with probability 0.2, 1 with 0.3, 2 with 0.5. The entries are gone through in
    random order, each fires with its probability, until that many have fired; both copies of an operation may.

    Source: Population Based Augmentation (arXiv 1905.05393) and its code.

    >>> draw_policy(np.arange(4), np.zeros(30, int), np.zeros(30, int), height=8, width=8).operations.any()
    np.False_
    """
    key = {"epoch": epoch, "seed": seed, "candidate": candidate}
    count, entries = len(index), len(ENTRIES)

    def words(block: int) -> NDArray[np.uint64]:
        return draw_words(index, stream=Stream.POLICY, block=block, **key)  # type: ignore[arg-type]

    drawn = np.concatenate([words(block) for block in range(8)])[:entries].T
    # The tenth that a word falls into decides whether its entry fires, where within the tenth decides when
    # it has its turn.
    turns = np.where(below(drawn, 10) < probabilities, drawn * np.uint64(10) & np.uint64(0xFFFFFFFF), _NEVER)
    most, directions, squares = words(8), words(8)[1:3], words(9)
    operations = np.zeros((count, 2), dtype=np.int64)
    arguments, places = np.full((count, 2), np.nan), np.zeros((count, 2, 2), dtype=np.int64)
    rows = np.arange(count)
    for step in range(2):
        first = turns.argmin(axis=1)
        fired = (turns[rows, first] != _NEVER) & (_MOST[below(most[0], 10)] > step)
        turns[rows, first] = _NEVER
        kind = first % len(OPERATIONS)
        levels = np.broadcast_to(magnitudes, (count, entries))[rows, first]
        sign = np.where(_SIGNED[kind] & (below(directions[step], 2) == 1), -1.0, 1.0)
        operations[:, step] = np.where(fired, _OPERATIONS[kind], Operation.IDENTITY)
        arguments[:, step] = np.where(fired, policy_arguments()[kind, levels] * sign, np.nan)
        centre = np.stack([below(squares[2 * step], height), below(squares[2 * step + 1], width)], axis=1)
        places[:, step] = np.where((operations[:, step] == Operation.CUTOUT)[:, None], centre, 0)
    return Plan(operations, arguments, places)


_NEVER = np.uint64(2**32)
_OPERATIONS = np.array([int(_KINDS[name][0]) for name in OPERATIONS])
_SIGNED = np.array([_KINDS[name][1] for name in OPERATIONS])


class LearnedAugment(Augmentation):
    """A learned schedule of policies, then a random crop and a random flip; drawn for each image.

    schedule: policies over epochs, see `PolicySchedule` and `read_schedule`
    epochs:   how many epochs the training takes over which the schedule is replayed
    replay:   proportional, legacy or flatten; see `PolicySchedule`
    others:   see `Augmentation`. The policies were learned with the data set's mean colour as fill and, in the
              reference, with a final cutout of 16 pixels for CIFAR-10: give both to repeat that.

    Call it with (batch, magnitude, epoch, seed). The magnitude has no effect: each entry of a policy has its
    own. The epoch counts from the beginning of the training.

    >>> from compress_aug.policies import Segment
    >>> invert = Policy.from_vector([0] * 10 + [10] + [0] * 49)
    >>> augment = LearnedAugment(PolicySchedule(1, (Segment(1, invert),)), epochs=5)
    >>> augment.draw(np.arange(6), None, height=8, width=8).operations.shape
    (6, 4)

    Source: Population Based Augmentation (arXiv 1905.05393), as in arXiv 2004.08861. Operations work on RGB with
    a fill, where the reference keeps a transparent border, which some operations turn black; and the crop moves
    by up to 8 pixels where the reference, by one too few, moves by up to 7.
    """

    def __init__(
        self,
        schedule: PolicySchedule,
        epochs: int,
        *,
        replay: Replay = "proportional",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        check_replay(replay)
        if not isinstance(schedule, PolicySchedule):
            raise RecipeError(
                "schedule must be a PolicySchedule, such as read_schedule gives, but it is a "
                f"{type(schedule).__name__}."
            )
        self.schedule = schedule
        self.epochs = check_epochs(epochs)
        self.replay: Replay = replay

    def draw_operations(
        self,
        index: NDArray[np.int64],
        magnitude: int | None,
        *,
        height: int,
        width: int,
        epoch: int,
        seed: int,
        candidate: Candidate = 0,
    ) -> Plan | None:
        """What the policy of this epoch does, see `draw_policy`; None if it never does anything."""
        if self.replay == "flatten":
            policies = _numbers(tuple(segment.policy for segment in self.schedule.segments))
            key = {"epoch": epoch, "seed": seed, "candidate": candidate}
            words = draw_words(index, stream=Stream.EPOCH, **key)  # type: ignore[arg-type]
            ends = np.cumsum(self.schedule.durations)
            probabilities, magnitudes = policies[
                :, np.searchsorted(ends, below(words[0], self.schedule.epochs), side="right")
            ]
        else:
            probabilities, magnitudes = _numbers((self.schedule.at(epoch, self.epochs, self.replay),))[:, 0]
        if not probabilities.any():
            return None
        size = {"height": height, "width": width}
        return draw_policy(
            index, probabilities, magnitudes, epoch=epoch, seed=seed, candidate=candidate, **size
        )


@lru_cache(maxsize=64)
def _numbers(policies: tuple[Policy, ...]) -> NDArray[np.int64]:
    """Probabilities and magnitudes, (2, policies, 30)."""
    return np.array([[policy.probabilities for policy in policies], [p.magnitudes for p in policies]])
