"""conduct: all runs of a study, several at once; what is finished is skipped, and one that fails stops no other."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from ruamel.yaml import YAML

from compress_aug.errors import CompressAugError, Interrupted, RunFolderError, WorkError
from compress_aug.folders import written_whole
from compress_aug.progress import interrupt_flag
from compress_aug.report.words import plain
from compress_aug.study.file import Study
from compress_aug.study.jobs import Job, jobs, wanted
from compress_aug.study.launch import Launch, Work
from compress_aug.study.planned import at_place
from compress_aug.study.results import ResultsFile, finished, machine, result_of
from compress_aug.study.words import RunResult

_LOOK_SECONDS = 0.3
_STOP_SECONDS = 120


def conduct(
    study: Study,
    *,
    out: Path,
    results: ResultsFile,
    launch: Launch,
    at_once: int = 1,
    command: str = "",
    about: dict[str, str | int] | None = None,
    console: Console | None = None,
) -> list[RunResult]:
    """Do every run of a study that is not done yet; returns the results of all of them, in the study's order.

    out:     the study's folder: runs, what they share, and their logs. It may hold an earlier, stopped try.
    results: the file that each finished run's figures are added to at once; runs found there are skipped
    launch:  how a job is done;  at_once: how many of them at a time
    command: what a reader would type to do the same, for the results
    about:   the machine, and such as how many threads a run had; `machine()` by default

    Raises WorkError that names the runs that failed, once all others are done; RunFolderError where nothing can be
    written; Interrupted at Ctrl-C. What is finished is kept.
    """
    console = console or Console(markup=False, emoji=False)
    found = results.found(study)
    folders = {run.name: out / "runs" / f"{run.name}-{run.hash[:6]}" for run in study.runs}
    needed = _needed(study, found, folders)
    todo = jobs(
        [run for run in study.runs if run.name in needed], lambda name: finished(out / "shared" / name)
    )
    work = _Conductor(
        study, out, results, launch, at_once, command, about or machine(), console, folders, todo
    )
    for run in study.runs:
        if run.name in found and run.name not in needed:
            work.say(f"{run.name}: done before, in {results.path}")
    work.all()
    known = results.found(study)
    if work.failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in work.failed.items())
        raise WorkError(
            f"{len(work.failed)} of {len(todo)} jobs of {study.name} failed, the others are done:\n{told}\n"
            "The same command tries them again."
        )
    return [known[run.name] for run in study.runs if run.name in known]


def _needed(study: Study, found: dict[str, RunResult], folders: dict[str, Path]) -> set[str]:
    """The names of runs to do: those without a result, and those whose folders these need and which are gone."""
    by_name = {run.name: run for run in study.runs}
    needed: set[str] = set()

    def need(name: str) -> None:
        if name in needed:
            return
        needed.add(name)
        for other in by_name[name].after:
            before = f"{other}-{by_name[name].seed}"
            if not finished(folders[before]):
                need(before)

    for run in study.runs:
        if run.name not in found:
            need(run.name)
    return needed


def _killed_by(number: int) -> str:
    """What became of a process that ended by a signal."""
    perhaps = ": was there enough memory?" if number == signal.SIGKILL else ""
    return f"it was ended from outside (signal {number}){perhaps}"


@dataclass
class _Running:
    job: Job
    work: Work
    began: float


@dataclass
class _Conductor:
    """The jobs of a study, from the first to the last."""

    study: Study
    out: Path
    results: ResultsFile
    launch: Launch
    at_once: int
    command: str
    about: dict[str, str | int]
    console: Console
    folders: dict[str, Path]
    todo: list[Job]
    failed: dict[str, str] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    _running: list[_Running] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _epochs: int = 0
    _total: int = 0

    def all(self) -> None:
        """Begin jobs as soon as there is room and what they wait for is done, until none is left."""
        waiting = self._to_begin()
        self._total = sum(job.epochs for job in waiting)
        with interrupt_flag() as interrupted, self._shown():
            try:
                while waiting or self._running:
                    waiting = self._without_hopeless(waiting)
                    self._begin(waiting)
                    self._look()
                    if interrupted():
                        raise KeyboardInterrupt
                    if self._running:
                        time.sleep(_LOOK_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                raise Interrupted(
                    f"Stopped with {len(self._done)} of {len(self.todo)} jobs of {self.study.name} done; the others "
                    "go on from where they are with the same command."
                ) from None
            except BaseException:
                self._stop()
                raise

    def say(self, line: str) -> None:
        self.console.print(plain(line), highlight=False, markup=False, soft_wrap=True)

    def _to_begin(self) -> list[Job]:
        """Less what an earlier try has finished, and beginnings that only this needed."""
        waiting = []
        for job in self.todo:
            if finished(self._folder(job)):
                self._finish(job, 0.0)
            elif (self._folder(job) / "recipe.yaml").is_file():
                # It has its beginning already.
                waiting.append(replace(job, start=None))
            else:
                waiting.append(job)
        return wanted(waiting)

    def _folder(self, job: Job | str) -> Path:
        name = job if isinstance(job, str) else job.name
        return self.folders.get(name, self.out / "shared" / name)

    def _without_hopeless(self, waiting: list[Job]) -> list[Job]:
        """Less those that wait for something that failed."""
        left = []
        for job in waiting:
            lost = next((name for name in job.waits_for if name in self.failed), None)
            if lost is None:
                left.append(job)
            else:
                self.failed[job.name] = f"not begun, because {lost} failed"
        return left

    def _begin(self, waiting: list[Job]) -> None:
        known = {job.name for job in self.todo}
        for job in list(waiting):
            if len(self._running) >= self.at_once:
                return
            if all(name in self._done or name not in known for name in job.waits_for):
                waiting.remove(job)
                self._running.append(_Running(job, self._launched(job), time.monotonic()))

    def _launched(self, job: Job) -> Work:
        folder, seed = self._folder(job), job.recipe["seed"]
        # Called like the folder, which has the hash in its name: another study of another form may be at work here.
        file = self.out / "recipes" / f"{folder.name}.yaml"
        recipe = at_place(job.recipe, lambda variant: self._folder(f"{variant}-{seed}"))
        start = self._folder(job.start) if job.start else None
        try:
            for place in ("recipes", "logs", "runs", "shared"):
                (self.out / place).mkdir(parents=True, exist_ok=True)
            with written_whole(file) as temporary:
                YAML(typ="safe", pure=True).dump(recipe, temporary)
            return self.launch(file, folder, start, self._log(job))
        except OSError as error:
            raise RunFolderError(
                f"{self.out} cannot be written to ({error.strerror or error}): make room, or choose another --out."
            ) from None

    def _log(self, job: Job) -> Path:
        return self.out / "logs" / f"{self._folder(job).name}.log"

    def _look(self) -> None:
        """See which jobs have ended."""
        for running in list(self._running):
            code = running.work.poll()
            if code is None:
                continue
            self._running.remove(running)
            job, seconds = running.job, time.monotonic() - running.began
            if code == 0 and finished(self._folder(job)):
                self._finish(job, seconds)
                continue
            said = running.work.last_line().removeprefix("error: ") or f"exit code {code}"
            self._fail(job, _killed_by(-code) if code < 0 else said)

    def _finish(self, job: Job, seconds: float) -> None:
        self._epochs += job.epochs if seconds else 0
        if job.run is None:
            self._done.add(job.name)
            self.say(f"{job.name}: {len(job.recipe['stages'])} stages that several runs share are done")
            return
        try:
            result = result_of(
                job.run,
                self._folder(job),
                preset=self.study.preset,
                command=self.command,
                shared=job.done,
                machine=self.about,
                schedules=self.study.file.show.kind == "schedules",
            )
        except CompressAugError as error:
            self._fail(job, str(error))
            return
        self.results.add(result)
        self._done.add(job.name)
        accuracy = result.figures.accuracy
        told = "" if accuracy is None else f"accuracy {100 * accuracy:.2f} %, "
        self.say(f"{job.name}: {told}{result.seconds:.0f} s ({len(self._done)} of {len(self.todo)})")

    def _fail(self, job: Job, said: str) -> None:
        self.failed[job.name] = f"{said} (all it said: {self._log(job)})"
        self.say(f"{job.name}: failed: {said}")

    def _stop(self) -> None:
        """Ask every job to stop, and wait until it has saved where it is."""
        for running in self._running:
            running.work.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(running.work.poll() is None for running in self._running) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        for running in self._running:
            running.work.stop(now=True)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """On a terminal, a line for each job under way and one for them all; elsewhere what ends is said."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._picture, console=self.console, transient=True, refresh_per_second=2):
            yield

    def _picture(self) -> Group:
        width = self.console.width
        lines = [
            Text(plain(f"  {running.job.name}: {running.work.last_line()}")[: width - 1], no_wrap=True)
            for running in self._running
        ]
        head = (
            f"{self.study.name}: {len(self._done)} of {len(self.todo)} jobs done, {len(self.failed)} failed"
        )
        return Group(Text(head + self._left(), style="bold", no_wrap=True), *lines)

    def _left(self) -> str:
        """How long the rest will take, from the epochs that are done."""
        seconds = time.monotonic() - self._began
        if not self._epochs:
            return ""
        left = seconds * (self._total - self._epochs) / self._epochs
        return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
