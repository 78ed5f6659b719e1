"""Population search for a schedule of policies: members train in turn in this process, the worst copy the best.

Synchronous: all members reach the same epoch before scores are compared, so the order of events does not depend on
how fast anything is, and one seed gives one schedule. (Population Based Augmentation compares whenever a member is
ready.) The events are those of its log and of Ray's, in the same files.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from compress_aug.batch import Batch
from compress_aug.errors import CompressAugError, Interrupted, RecipeError, RunFolderError, TrainingError
from compress_aug.policies import Policy, PolicySchedule, lived_schedule, log_line
from compress_aug.progress import interrupt_flag
from compress_aug.search.evolution import exploit, explore
from compress_aug.search.store import JOURNAL, MEMBER, START, Store, damaged_file
from compress_aug.training import Training, mixed_seed

Change = Callable[[Batch, int | None, int, int], Batch]
"""What changes the images of a training: (batch, magnitude, epoch, seed) -> batch."""

_FORMAT = 1


class PolicySlot:
    """An augmentation whose policy can be exchanged between two epochs.

    make: policy -> what changes the images by it

    >>> slot = PolicySlot(lambda policy: lambda batch, magnitude, epoch, seed: batch)
    >>> slot.policy.is_none
    True
    """

    def __init__(self, make: Callable[[Policy], Change]) -> None:
        self._make = make
        self.policy = Policy.none()

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self._change = self._make(policy)

    def __call__(self, batch: Batch, magnitude: int | None, epoch: int, seed: int) -> Batch:
        """The changed batch."""
        return self._change(batch, magnitude, epoch, seed)


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    done, total: epochs of all members together
    epoch:       that every member has reached
    scores:      validation accuracy of each member, in [0, 1]; None before its first epoch, or when it broke down
    taken:       after an exchange: {member: the one that it took over}
    """

    done: int
    total: int
    epoch: int
    scores: tuple[float | None, ...]
    taken: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundPolicies:
    """What a population search found.

    schedule: of the best member, from the first epoch of its line of ancestors on
    best:     number of that member
    score:    its validation accuracy at the end, in [0, 1]
    curves:   for each member its validation accuracies, epoch by epoch; None where it had broken down
    taken:    how often a member took over from another
    """

    schedule: PolicySchedule
    best: int
    score: float
    curves: tuple[tuple[float | None, ...], ...]
    taken: int


@dataclass
class _Member:
    """policy: 60 numbers;  lines: of its log;  state: where its training is kept, None before its first epoch"""

    policy: list[int]
    epochs: int = 0
    score: float | None = None
    curve: list[float | None] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    state: str | None = None

    @property
    def rank(self) -> float:
        return -math.inf if self.score is None else self.score


def search_population(
    training: Training,
    slot: PolicySlot,
    *,
    population: int = 16,
    every: int = 3,
    quantile: float = 0.25,
    resample: float = 0.2,
    seed: int = 0,
    folder: Path | None = None,
    told: Callable[[Progress], None] = lambda progress: None,
    about: Mapping[str, Any] | None = None,
) -> FoundPolicies:
    """Search for the schedule of policies with which a training ends best on its validation images.

    Members are trained epoch by epoch here, for they exchange weights in between: no `fit`, ours or a run's, is called.

    training:   made anew, with `slot` as (or within) its augmentation and images to validate on; its model is changed
    population: members, 2 or more; all begin with the training's weights and without augmentation, and see their
                images in an order of their own
    every:      epochs between two exchanges: the worst quarter takes over weights and policy of one of the best
                quarter, and changes the policy
    quantile, resample: see `exploit`, `explore`
    folder:     where the state of the search is kept, so that it goes on from there when it is called again; None
                keeps it in memory. Ends with the logs of all members as Population Based Augmentation writes them
    told:       is called after each epoch of each member, and after each exchange
    about:      plain values that join the schedule's provenance

    The cost is that of `population` trainings. On a GPU one member is there at a time.

    Raises RecipeError for numbers out of range, RunFolderError for a folder of another search, TrainingError when every
    member breaks down, Interrupted at Ctrl-C (each member is kept as it was at the exchange before).

    Source: Population Based Augmentation (arXiv 1905.05393), as arXiv 2004.08861 uses it; what is ours: exchanges at
    the same epoch for all, and one start for all members.
    """
    check_numbers(population, every, training.settings.epochs)
    if not len(training.data.validation):
        raise RecipeError("a search judges by validation images, and the data set holds none out")
    search = _Search(training, slot, every, quantile, resample, seed, Store(folder), told)
    with interrupt_flag() as interrupted:
        search.begin(population, interrupted)
        return search.run(dict(about or {}), interrupted)


def check_numbers(population: int, every: int, epochs: int) -> None:
    """Raise RecipeError for numbers with which no search would exchange anything."""
    if population < 2 or every < 1:
        raise RecipeError(
            f"a search needs a population of at least 2 and an exchange every 1 or more epochs, found {population} and "
            f"{every}"
        )
    if every >= epochs:
        raise RecipeError(
            f"an exchange every {every} of {epochs} epochs leaves no epoch behind one: nothing would be searched"
        )


@dataclass
class _Search:
    training: Training
    slot: PolicySlot
    every: int
    quantile: float
    resample: float
    seed: int
    store: Store
    told: Callable[[Progress], None]
    members: list[_Member] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    exchanged: int = 0

    @property
    def epochs(self) -> int:
        return self.training.settings.epochs

    def begin(self, population: int, interrupted: Callable[[], bool]) -> None:
        """Take up what is in the folder, or start."""
        self._kind = {
            **{name: getattr(self, name) for name in ("epochs", "every", "quantile", "resample", "seed")},
            "population": population,
            "settings": asdict(self.training.settings),
            "images": [len(self.training.data.train), len(self.training.data.validation)],
            "weights": _fingerprint(self.training),
        }
        found = self.store.read(JOURNAL)
        if found is None:
            # Once for all members: attention heads are trained here, say.
            objective = self.training.objective
            if hasattr(objective, "begin") and not objective.begin(
                self.training, lambda training: interrupted()
            ):
                raise Interrupted("Stopped before the first epoch.")
            self.store.put(START, self.training.state_dict())
            self.members = [_Member(Policy.none().vector()) for _ in range(population)]
            self._write_journal()
            return
        if found.get("format") != _FORMAT or found.get("search") != self._kind:
            there = found.get("search")
            there = there if isinstance(there, dict) else {}
            other = [name for name, value in self._kind.items() if there.get(name) != value]
            raise RunFolderError(
                f"{self.store.folder} holds another search (different: {', '.join(other) or 'format'}): delete that "
                "folder, and the search begins anew."
            )
        try:
            self.members = [_Member(**member) for member in found["members"]]
            for member in self.members:
                Policy.from_vector(member.policy)
            self.events, self.exchanged = list(found["events"]), int(found["exchanged"])
            whole = len(self.members) == population and all(
                isinstance(member.epochs, int) and len(member.curve) == member.epochs
                for member in self.members
            )
        except (KeyError, TypeError, ValueError, CompressAugError):
            whole = False
        if not whole:
            assert self.store.folder is not None
            raise damaged_file(self.store.folder / JOURNAL, "members of it are missing, or keys of members")

    def run(self, about: dict[str, Any], interrupted: Callable[[], bool]) -> FoundPolicies:
        while (reached := min(member.epochs for member in self.members)) < self.epochs:
            if reached % self.every == 0 and reached > self.exchanged:
                self._check_alive(reached)
                self._exchange(reached)
            goal = min((reached // self.every + 1) * self.every, self.epochs)
            for number, member in enumerate(self.members):
                if member.epochs < goal:
                    self._advance(number, member, goal, interrupted)
        self._check_alive(self.epochs)
        self._write_logs()
        # What is found is in the journal; the weights were only good for going on.
        self.store.drop(set(), START)
        best = max(range(len(self.members)), key=lambda number: self.members[number].rank)
        winner = self.members[best]
        schedule = lived_schedule(winner.lines, epochs=self.epochs, first=Policy.from_vector(winner.policy))
        return FoundPolicies(
            replace(schedule, provenance={**schedule.provenance, **about}),
            best,
            winner.rank,
            tuple(tuple(member.curve) for member in self.members),
            len(self.events),
        )

    def _check_alive(self, epoch: int) -> None:
        if all(member.score is None for member in self.members):
            raise TrainingError(
                f"Every member of the search broke down by epoch {epoch}: its loss is no number. Try a smaller lr."
            )

    def _advance(self, number: int, member: _Member, goal: int, interrupted: Callable[[], bool]) -> None:
        """Train a member up to an epoch, and keep it."""
        broken = member.epochs > 0 and member.score is None
        training, before = self.training, member.state
        if not broken:
            self._load(member.state)
            training.seed = mixed_seed(self.seed, "member", number)
            self.slot.policy = Policy.from_vector(member.policy)
        while member.epochs < goal:
            if not broken:
                try:
                    whole = training.epoch(lambda training: interrupted())
                except TrainingError:
                    broken, member.score = True, None
                else:
                    if not whole:
                        raise Interrupted(f"Stopped in epoch {member.epochs + 1} of member {number}.")
                    member.score = training.history[-1]["validation_accuracy"]
            member.epochs += 1
            member.curve.append(None if broken else member.score)
            self._tell()
        if not broken:
            member.state = f"{MEMBER}{number:03d}-{member.epochs:05d}.pt"
            self.store.put(member.state, training.state_dict())
        self._write_journal()
        if before != member.state:
            self.store.drop({other.state for other in self.members if other.state})
        if interrupted():
            raise Interrupted(f"Stopped after epoch {member.epochs} of member {number}.")

    def _load(self, name: str | None) -> None:
        state = self.store.get(name or START, self.training.fabric.device)
        try:
            self.training.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self.store.damaged(name or START, error) from error

    def _exchange(self, epoch: int) -> None:
        rng = Random(mixed_seed(self.seed, "exchange", epoch))
        taken = exploit([member.rank for member in self.members], rng, self.quantile)
        for target, source in taken.items():
            better = self.members[source]
            before = Policy.from_vector(better.policy)
            after = explore(before, rng, self.resample)
            line = log_line(target, source, (epoch, epoch), before, after)
            self.events.append(line)
            own = self.members[target]
            self.members[target] = _Member(
                after.vector(), epoch, better.score, own.curve, [*better.lines, line], better.state
            )
        self.exchanged = epoch
        self._write_journal()
        self._tell(taken)

    def _tell(self, taken: Mapping[int, int] | None = None) -> None:
        epochs = [member.epochs for member in self.members]
        scores = tuple(member.score for member in self.members)
        self.told(Progress(sum(epochs), self.epochs * len(epochs), min(epochs), scores, taken or {}))

    def _write_journal(self) -> None:
        journal = {
            "format": _FORMAT,
            "search": self._kind,
            "members": [asdict(member) for member in self.members],
            "events": self.events,
            "exchanged": self.exchanged,
        }
        self.store.write(JOURNAL, json.dumps(journal) + "\n")

    def _write_logs(self) -> None:
        """As Population Based Augmentation and Ray name them."""
        self.store.write("pbt_global.txt", "".join(f"{line}\n" for line in self.events))
        for number, member in enumerate(self.members):
            if member.lines:
                self.store.write(f"pbt_policy_{number}.txt", "".join(f"{line}\n" for line in member.lines))


def _fingerprint(training: Training) -> str:
    """Of the weights that all members begin with."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in training.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def spread(scores: tuple[float | None, ...]) -> str:
    """The scores of a population in a few words, for a line of progress.

    >>> spread((0.5, 0.25, None))
    'best 50.0 %, median 37.5 %, worst 25.0 %, 1 broken down'
    """
    numbers = [score for score in scores if score is not None]
    broken = f", {len(scores) - len(numbers)} broken down" if len(numbers) < len(scores) else ""
    if not numbers:
        return broken[2:]
    shown = (max(numbers), statistics.median(numbers), min(numbers))
    words = zip(("best", "median", "worst"), shown, strict=True)
    return ", ".join(f"{word} {100 * value:.1f} %" for word, value in words) + broken
