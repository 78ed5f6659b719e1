"""One run of a study in a process of its own: python -m compress_aug.study.worker RECIPE FOLDER START DEVICE PARENT."""

import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

_GRACE_SECONDS = 60


def work(recipe: str | Path, folder: str | Path, start: str | Path | None, device: str) -> None:
    """Run a recipe in a folder, or go on with it there; with its first stages from another run, if there is one.

    recipe: of a YAML file;  start: the folder of the run that has done its first stages, or None

    A missed budget is no failure here: the study reports how large and how fast the files are.

    Raises what `run` and `begin_like` raise.
    """
    from compress_aug.errors import BudgetMissed
    from compress_aug.recipe import load_recipe
    from compress_aug.running import run
    from compress_aug.running.share import begin_like

    loaded, folder = load_recipe(recipe), Path(folder)
    begun = (folder / "recipe.yaml").is_file()
    if not begun:
        # What a run that was killed in its first moments left has no recipe, and nobody can go on from it.
        shutil.rmtree(folder, ignore_errors=True)
    if not begun and start is not None:
        begin_like(loaded, start, folder)
    # As wide as it needs: the log is read line by line.
    console = Console(width=160, markup=False, emoji=False)
    try:
        run(
            loaded,
            out=folder,
            resume=begun or start is not None,
            device=device,
            console=console,
        )
    except BudgetMissed as missed:
        console.print(f"note: {missed}", highlight=False, soft_wrap=True)


def _end_with(parent: int) -> None:
    """Stop as Ctrl-C would, once the study that began this run is no more: nobody would read its results."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(_GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _alone() -> None:
    """Wait until no other process is at work on this run: that of a study which was killed a moment ago, say.

    Two in one folder would spoil each other's files. The log is what each has open, and is locked as long as that.
    """
    try:
        fcntl.flock(sys.stdout, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("waits until another process has ended that is at work on this run", flush=True)
        fcntl.flock(sys.stdout, fcntl.LOCK_EX)


def main() -> None:
    """Exit codes are those of the command line."""
    from compress_aug.errors import CompressAugError

    recipe, folder, start, device, parent = sys.argv[1:]
    _end_with(int(parent))
    # The interpreter ignores Ctrl-C in a process that was started in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _alone()
        work(recipe, folder, start or None, device)
    except CompressAugError as error:
        # On one line: the last one is what the study tells.
        print(f"error: {' '.join(str(error).splitlines())}", flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
