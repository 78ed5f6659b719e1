"""The log files of Population Based Augmentation and Ray's population based training: read and written.

A line is one event, in which a trial (the target) takes over weights and policy of a better one (the source)
and changes the policy: [target, source, target's epoch, source's epoch, policy before, policy after]. It is
JSON, or a Python literal in older files. A policy is its 60 numbers, or a dict of settings that holds them as
`hp_policy`. A file tells the life of one trial, but may begin with lines that are not part of it: a source that
had no file of its own left the target's older lines in place.
"""

import ast
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from compress_aug.errors import RecipeError
from compress_aug.policies.files import read_text, write_text
from compress_aug.policies.policy import Policy, whole
from compress_aug.policies.schedule import PolicySchedule, Segment, check_epochs

FIELDS = ("target", "source", "target's epoch", "source's epoch", "policy before", "policy after")


class _Event(NamedTuple):
    where: str
    target: str
    source: str
    epoch: int
    before: Policy
    after: Policy


def read_pba_log(path: str | Path, *, epochs: int) -> PolicySchedule:
    """The schedule of the trial that a log file is about.

    epochs: how many epochs the search took, which the file does not say

    Walks back from the last line as long as a line's target is the next line's source; what stands before is of
    another life and is left out. Only the source's epochs count, because the target goes on from there.
    `provenance` says how many lines were valid of how many.

    Raises RecipeError with file and line for a damaged line (also among those that would be left out), for
    epochs that go backwards, and for `epochs` smaller than the last line's.

    >>> segments = (Segment(4, Policy.none()), Segment(5, Policy.from_vector([1] * 60)))
    >>> write_pba_log(PolicySchedule(9, segments), "log.txt")
    >>> schedule = read_pba_log("log.txt", epochs=9)
    >>> schedule.durations, schedule.provenance["valid_lines"]
    ((4, 5), 1)

    Source: the code of Population Based Augmentation (arXiv 1905.05393).
    """
    path = Path(path)
    check_epochs(epochs)
    lines = read_text(path).split("\n")
    if not any(line.strip() for line in lines):
        raise RecipeError(f"{path}: the file is empty; a trial that never changed its policy has no log.")
    schedule = lived_schedule(lines, epochs=epochs, first=Policy.none(), name=str(path))
    return replace(schedule, provenance={"source": "PBA log", "file": path.name, **schedule.provenance})


def lived_schedule(lines: Sequence[str], *, epochs: int, first: Policy, name: str = "log") -> PolicySchedule:
    """The schedule of a trial, from the lines of its log.

    lines: of one trial, the oldest first; those that hold nothing are passed over
    first: the policy that it had throughout if there is no line
    name:  of the log, for messages

    Reads as `read_pba_log` does, and raises RecipeError as it does.

    >>> lived_schedule([], epochs=9, first=Policy.none()).durations
    (9,)
    """
    events = [_event(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not events:
        return PolicySchedule(epochs, (Segment(epochs, first),))
    lineage = _lineage(events)
    about = {"trial": lineage[-1].target, "lines": len(events), "valid_lines": len(lineage)}
    return PolicySchedule(epochs, _segments(lineage, epochs), about)


def log_line(target: int, source: int, epochs: tuple[int, int], before: Policy, after: Policy) -> str:
    """One event as a line of a log: what `lived_schedule` and `read_pba_log` read.

    target, source: numbers of trials
    epochs:         those that target and source had done
    before, after:  the policy of the source, and what was made of it

    >>> log_line(3, 0, (6, 6), Policy.none(), Policy.none())[:17]
    '["3", "0", 6, 6, '
    """
    return json.dumps([str(target), str(source), *epochs, before.vector(), after.vector()])


def write_pba_log(schedule: PolicySchedule, path: str | Path) -> None:
    """Write the schedule as a log that `read_pba_log` reads back: JSON lines in the form of PBA's published ones.

    Each change of policy becomes an event between made-up trials "0", "1", ... The number of epochs and the
    provenance are not part of such a file.
    Raises RecipeError for a schedule of a single policy, which has no event, and if the file cannot be written.
    """
    if len(schedule.segments) < 2:
        raise RecipeError(
            "a PBA log holds the changes of a policy, and this schedule has a single policy: "
            "keep it with write_schedule"
        )
    lines, epoch = [], 0
    for number, (old, new) in enumerate(pairwise(schedule.segments)):
        epoch += old.epochs
        lines.append(log_line(number + 1, number, (epoch, epoch), old.policy, new.policy) + "\n")
    write_text(Path(path), "".join(lines))


def _lineage(events: Sequence[_Event]) -> Sequence[_Event]:
    """The last events that are one life: each one's target is the source of the next."""
    first = len(events) - 1
    while first > 0 and events[first - 1].target == events[first].source:
        first -= 1
    return events[first:]


def _segments(lineage: Sequence[_Event], epochs: int) -> tuple[Segment, ...]:
    last = lineage[-1]
    if epochs < last.epoch:
        raise RecipeError(
            f"{last.where}: the policy changes at epoch {last.epoch}, after the given end of the search, "
            f"epochs={epochs}."
        )
    segments = [Segment(lineage[0].epoch, lineage[0].before)]
    for event, following in pairwise(lineage):
        if following.epoch < event.epoch:
            raise RecipeError(
                f"{following.where}: the source's epoch is {following.epoch}, before the {event.epoch} of the "
                f"line before it."
            )
        segments.append(Segment(following.epoch - event.epoch, event.after))
    return (*segments, Segment(epochs - last.epoch, last.after))


def _event(line: str, where: str) -> _Event:
    record = _literal(line, where)
    if not isinstance(record, list | tuple) or len(record) != len(FIELDS):
        found = f"{len(record)} fields" if isinstance(record, list | tuple) else type(record).__name__
        raise RecipeError(f"{where}: expected [{', '.join(FIELDS)}], found {found}.")
    target, source = (_tag(record[n], f"{where}, {FIELDS[n]}") for n in (0, 1))
    _, epoch = (_epoch(record[n], f"{where}, {FIELDS[n]}") for n in (2, 3))
    before, after = (_policy(record[n], f"{where}, {FIELDS[n]}") for n in (4, 5))
    return _Event(where, target, source, epoch, before, after)


def _literal(line: str, where: str) -> Any:
    """JSON, else a Python literal; never anything that runs."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            # Python only warns of "\d" and the like, which none of these programs writes.
            warnings.simplefilter("error")
            return ast.literal_eval(line.strip())
    # The last two are what Python raises for a line that is nested without end.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RecipeError(
            f"{where}: this is neither JSON nor a Python literal; is the file damaged?"
        ) from None


def _tag(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    number = whole(value)
    if number is None:
        raise RecipeError(f"{where}: expected the number of a trial, found {type(value).__name__}.")
    return str(number)


def _epoch(value: Any, where: str) -> int:
    number = whole(value)
    if number is None or number < 0:
        raise RecipeError(f"{where}: expected a whole number of at least 0, found {str(value)[:40]}.")
    return number


def _policy(value: Any, where: str) -> Policy:
    if isinstance(value, dict):
        if "hp_policy" not in value:
            raise RecipeError(f'{where}: these settings hold no "hp_policy".')
        value = value["hp_policy"]
    try:
        return Policy.from_vector(value)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}.") from None
