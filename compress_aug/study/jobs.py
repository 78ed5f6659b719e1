"""What has to be done for a study, as jobs: its runs, and the first stages that several of them share."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress_aug.study.file import PlannedRun


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


def jobs(runs: Sequence[PlannedRun]) -> list[Job]:
    """Every run as a job, and before it what it shares with others, so that nothing is trained twice.

    Runs share their first stages if these, the model, the data, the seed and the target are equal; they part
    before the first stage that depends on what comes behind it (`Stage.looks_ahead`).
    Each job comes behind those that it waits for.
    """
    alike: dict[str, list[PlannedRun]] = {}
    for run in runs:
        alike.setdefault(_base(run), []).append(run)
    found: list[Job] = []
    for group in alike.values():
        found += _parted(group, None, 0)
    return _in_order(found)


def _base(run: PlannedRun) -> str:
    return json.dumps({key: run.recipe[key] for key in ("model", "data", "seed", "target")}, sort_keys=True)


def _parted(group: list[PlannedRun], start: Job | None, done: int) -> list[Job]:
    """Jobs for runs that begin alike. start: the job that does the first `done` stages of all of them."""
    if len(group) == 1:
        return [_job(group[0], start, done)]
    common = _common([_stages(run) for run in group], done)
    found: list[Job] = []
    # Anything shorter is done again by each: a folder of its own would cost more.
    if any(group[0].epochs[done:common]):
        start = _beginning(group[0], common, start, done)
        found, done = [start], common
    parts: dict[str, list[PlannedRun]] = {}
    for run in group:
        stages = _stages(run)
        # At the end of what can be shared each goes on alone.
        parts.setdefault(stages[common] if common < len(stages) else f"alone {run.name}", []).append(run)
    for part in parts.values():
        found += _parted(part, start, done)
    return found


def _stages(run: PlannedRun) -> list[str]:
    """Its stages as text, as far as another run may share them."""
    return [json.dumps(stage, sort_keys=True) for stage in run.recipe["stages"][: run.shareable]]


def _common(lists: list[list[str]], at_least: int) -> int:
    count = at_least
    while all(count < len(one) and one[count] == lists[0][count] for one in lists):
        count += 1
    return count


def _job(run: PlannedRun, start: Job | None, done: int) -> Job:
    after = tuple(f"{other}-{run.seed}" for other in run.after)
    return Job(run.name, run.recipe, _name(start), done, after, run, sum(run.epochs[done:]))


def _beginning(run: PlannedRun, stages: int, start: Job | None, done: int) -> Job:
    recipe = {**run.recipe, "name": "shared", "stages": run.recipe["stages"][:stages]}
    text = json.dumps({key: value for key, value in recipe.items() if key != "name"}, sort_keys=True)
    name = f"shared-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{run.seed}"
    # Which of the runs that it names are needed is not looked at: they are the same for all that share it.
    after = tuple(f"{other}-{run.seed}" for other in run.after if f"{other}/" in text or f'{other}"' in text)
    return Job(name, recipe, _name(start), done, after, None, sum(run.epochs[done:stages]))


def _name(job: Job | None) -> str | None:
    return job.name if job else None


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
