"""What long work shows while it runs, and how Ctrl-C reaches it between two steps."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# A terminal cannot be read faster, and each look at the loss makes a GPU wait.
_REFRESH_SECONDS = 0.2


@contextmanager
def interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that the work asks between its steps; a second one stops at once.

    Outside the main thread, where Python delivers no signals, and in a job that the shell started with Ctrl-C
    ignored, the flag simply stays down.

    >>> with interrupt_flag() as interrupted:
    ...     interrupted()
    False
    """
    seen = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def counting(console: Console | None, title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that tells (done, total) now and then; without a terminal nothing is shown.

    >>> with counting(None, "reading") as counted:
    ...     counted(3, 10)
    """
    shown = console if console is not None and console.is_terminal else Console(quiet=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(compact=True), console=shown, transient=True, disable=shown.quiet
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class EpochProgress:
    """A bar over a stage's epochs with loss, accuracy, images/s and the time left; a line per epoch in a log file.

    title: what is running, in a few words

    >>> with EpochProgress(Console(quiet=True), "train 2 epochs") as progress:
    ...     progress.epoch
    <bound method ...>
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._shown = 0.0
        # On a terminal the bar moves; elsewhere its redrawn lines would fill the log.
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=1.0, numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, training: Any) -> None:
        """Show where the training is, a few times a second at most."""
        now = time.monotonic()
        if self._bar.disable or now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        row = training.so_far()
        epoch = f"epoch {training.epochs_done + 1}/{training.settings.epochs}"
        self._bar.update(self._task, completed=training.progress(), numbers=f"{epoch} · {_numbers(row)}")

    def epoch(self, training: Any) -> None:
        """Show the epoch that just ended."""
        row = training.history[-1]
        self._bar.update(self._task, completed=training.epochs_done / training.settings.epochs)
        self._console.print(
            f"  epoch {row['epoch']:>3}/{training.settings.epochs} · {_numbers(row)}",
            highlight=False,
            soft_wrap=True,
        )


def _numbers(row: dict[str, Any]) -> str:
    parts = [f"loss {row['loss']:.4f}", f"train {row['train_accuracy']:.1%}"]
    if row.get("validation_accuracy") is not None:
        parts.append(f"validation {row['validation_accuracy']:.1%}")
    if row.get("magnitude"):
        first, last = ("none" if m is None else str(m) for m in row["magnitude"])
        strength = f"M {first}" if first == last else f"M {first}→{last}"
        # Of magnitudes that were drawn up to this one, what the teacher's filter took in the mean.
        chosen = f", chosen {row['chosen_magnitude']:.1f}" if "chosen_magnitude" in row else ""
        parts.append(strength + chosen)
    parts.append(f"{row['images_per_second']:,.0f} images/s")
    return " · ".join(parts)
