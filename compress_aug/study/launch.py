"""Ways of doing a job: a process on this machine. Another way (Ray) lies in its own file and looks the same."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

_TAIL_BYTES = 4096


class Work(Protocol):
    """A job under way."""

    def poll(self) -> int | None:
        """None while it runs, then its exit code: 0 for done."""

    def stop(self, *, now: bool = False) -> None:
        """Ask it to stop so that it can go on later; `now`: without asking."""

    def last_line(self) -> str:
        """The last line that it said."""


Launch = Callable[[Path, Path, Path | None, Path], Work]
"""(recipe file, folder of the run, folder whose stages come first or None, log file) -> the work, begun."""


def in_processes(device: str, threads: int) -> Launch:
    """Each job in a process of its own on this machine, so that one that fails or dies takes nothing with it.

    threads: that each may use
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}

    def launch(recipe: Path, folder: Path, start: Path | None, log: Path) -> Work:
        command = [sys.executable, "-u", "-m", "compress_aug.study.worker", str(recipe), str(folder)]
        command += [str(start or ""), device, str(os.getpid())]
        # Added to what an earlier try said.
        with log.open("ab") as out:
            return _Process(command, environment, out, log)

    return launch


class _Process:
    def __init__(self, command: list[str], environment: dict[str, str], out: IO[bytes], log: Path) -> None:
        self._log = log
        # A session of its own: Ctrl-C reaches the study alone, which then asks each run to stop.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self, *, now: bool = False) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL if now else signal.SIGINT)
            if now:
                self._process.wait()

    def last_line(self) -> str:
        return last_line(self._log)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    if not log.is_file():
        return ""
    with log.open("rb") as read:
        read.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = read.read().decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
