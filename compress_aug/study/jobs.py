"""What has to be done for a study, as jobs: its runs, and the first stages that several of them share."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compress_aug.study.planned import PlannedRun, runs_in

Finished = Callable[[str], bool]
"""Whether the job of a name is done."""


@dataclass(frozen=True)
class Job:
    """One process's work: a recipe, from the start or behind the stages that another job has done.

    name:   of its folder within the study's
    recipe: plain data; of a shared beginning its stages only
    start:  the name of the job whose stages come first; done: how many these are
    after:  names of jobs whose folders this one's recipe names
    run:    the run that it finishes; None for a beginning that several runs share
    epochs: of its own stages together, as a measure of how long it takes
    """

    name: str
    recipe: dict[str, Any]
    start: str | None = None
    done: int = 0
    after: tuple[str, ...] = ()
    run: PlannedRun | None = None

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The jobs that must be finished before this one can begin."""
        return (*((self.start,) if self.start else ()), *self.after)

    epochs: int = 0


def jobs(runs: Sequence[PlannedRun], finished: Finished | None = None) -> list[Job]:
    """Every run as a job, and before it what it shares with others, so that nothing is trained twice.

    finished: whether an earlier try did the job of this name; what it did is taken up wherever it fits

    Runs share their first stages if these, the model, the data, the seed and the target are equal; they part
    before the first stage that cannot be shared (see `compress_aug.running.share.shareable`).
    Each job comes behind those that it waits for.
    """
    alike: dict[str, list[PlannedRun]] = {}
    for run in runs:
        alike.setdefault(_base(run), []).append(run)
    found: list[Job] = []
    for group in alike.values():
        found += _parted(group, _Start(None, 0), finished)
    return wanted(_in_order(found))


def wanted(todo: Iterable[Job]) -> list[Job]:
    """Less the beginnings that no other job of these goes on from. todo: each behind those that it waits for."""
    starts: set[str | None] = set()
    left: list[Job] = []
    for job in reversed(list(todo)):
        if job.run is not None or job.name in starts:
            starts.add(job.start)
            left.append(job)
    return left[::-1]


@dataclass(frozen=True)
class _Start:
    """Where a job begins: behind the first `done` stages, which the job `name` did."""

    name: str | None
    done: int


def _base(run: PlannedRun) -> str:
    return json.dumps({key: run.settled[key] for key in ("model", "data", "seed", "target")}, sort_keys=True)


def _parted(group: list[PlannedRun], start: _Start, finished: Finished | None) -> list[Job]:
    """Jobs for runs that begin alike."""
    if len(group) == 1:
        return [_job(group[0], start, finished)]
    common = _common([_stages(run) for run in group], start.done)
    found: list[Job] = []
    # Anything shorter is done again by each: a folder of its own would cost more.
    if any(group[0].epochs[start.done : common]):
        found = [_beginning(group[0], common, start, finished)]
        start = _Start(found[0].name, common)
    parts: dict[str, list[PlannedRun]] = {}
    for run in group:
        stages = _stages(run)
        # At the end of what can be shared each goes on alone.
        parts.setdefault(stages[common] if common < len(stages) else f"alone {run.name}", []).append(run)
    for part in parts.values():
        found += _parted(part, start, finished)
    return found


def _stages(run: PlannedRun) -> list[str]:
    """Its stages as text, as far as another run may share them."""
    return [json.dumps(stage, sort_keys=True) for stage in run.settled["stages"][: run.shareable]]


def _common(lists: list[list[str]], at_least: int) -> int:
    count = at_least
    while all(count < len(one) and one[count] == lists[0][count] for one in lists):
        count += 1
    return count


def _job(run: PlannedRun, start: _Start, finished: Finished | None) -> Job:
    start = _furthest(run, run.shareable, start, finished)
    after = tuple(f"{other}-{run.seed}" for other in run.after)
    return Job(run.name, run.recipe, start.name, start.done, after, run, sum(run.epochs[start.done :]))


def _beginning(run: PlannedRun, stages: int, start: _Start, finished: Finished | None) -> Job:
    start = _furthest(run, stages - 1, start, finished)
    recipe = {**run.recipe, "name": "shared", "stages": run.recipe["stages"][:stages]}
    after = tuple(f"{other}-{run.seed}" for other in sorted(runs_in(recipe)))
    epochs = sum(run.epochs[start.done : stages])
    return Job(_shared(run, stages), recipe, start.name, start.done, after, None, epochs)


def _furthest(run: PlannedRun, most: int, start: _Start, finished: Finished | None) -> _Start:
    """The longest beginning of at most so many stages that is done already, if it is longer than this one."""
    if finished is None:
        return start
    for stages in range(most, start.done, -1):
        if finished(name := _shared(run, stages)):
            return _Start(name, stages)
    return start


def _shared(run: PlannedRun, stages: int) -> str:
    """What the job of its first stages is called: the same for all runs that begin so, and for no others."""
    text = json.dumps({**run.settled, "stages": run.settled["stages"][:stages]}, sort_keys=True)
    return f"shared-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{run.seed}"


def _in_order(found: list[Job]) -> list[Job]:
    """Each behind those that it waits for, otherwise as they were."""
    known = {job.name: job for job in found}
    ordered: dict[str, Job] = {}

    def add(job: Job) -> None:
        for name in job.waits_for:
            # One that is not among them is finished already.
            if name in known and name not in ordered:
                add(known[name])
        ordered[job.name] = job

    for job in found:
        if job.name not in ordered:
            add(job)
    return list(ordered.values())
