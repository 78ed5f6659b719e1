"""The population search on Ray, for real: three members in two places, stopped by Ctrl-C, one process killed later."""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

import compress_aug
from compress_aug import Recipe, Search, Train
from compress_aug.errors import Interrupted
from compress_aug.policies import read_schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason='Ray is not there: pip install "compress-aug[ray]"'
    ),
    # Ray warns of its own parts.
    pytest.mark.filterwarnings("default"),
]


def _workers() -> list[int]:
    """Processes in which a member trains: Ray names them after what they do."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::") and "train" in title.lower():
            found.append(int(place.name))
    return found


def _kill_one_after(checkpoint: Path, killed: list[int]) -> None:
    """As soon as a member has been kept once, the process of one of them dies."""
    for _ in range(3000):
        if list(checkpoint.glob("population/*/checkpoint_*")) and (workers := _workers()):
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])
            return
        time.sleep(0.1)


def _ctrl_c_after(checkpoint: Path) -> None:
    for _ in range(3000):
        if list(checkpoint.glob("population/*/checkpoint_*")):
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.1)


def test_a_search_on_ray_survives_ctrl_c_and_the_death_of_a_worker(tmp_path: Path) -> None:
    out, killed, epochs = tmp_path / "run", [], 12
    stage = Search(
        kind="population",
        keep="found",
        driver="ray",
        # One more than there are places for: a process takes up another member when one pauses.
        population=3,
        cpus=max(1.0, (os.cpu_count() or 2) // 2),
        every=2,
        quantile=0.5,
        train_images=400,
        validation_images=100,
        train=Train(epochs=epochs, batch_size=32, lr=0.05, precision="float32"),
    )

    def run(resume: bool) -> compress_aug.Result:
        return compress_aug.run(
            Recipe([stage, Train(epochs=2, batch_size=32, augment={"policy": "found"})], name="toy"),
            model={"name": "resnet8", "width": 4},
            data="digits",
            out=out,
            resume=resume,
            device="cpu",
            console=Console(quiet=True),
        )

    threading.Thread(target=_ctrl_c_after, args=(out / "00-search",), daemon=True).start()
    with pytest.raises(Interrupted, match=r"of 3 members were done.*go on with --resume"):
        run(resume=False)
    killer = threading.Thread(target=_kill_one_after, args=(out / "00-search", killed), daemon=True)
    killer.start()
    result = run(resume=True)
    killer.join()
    assert killed, "no worker was found to kill"
    schedule = read_schedule(out / "kept/found.yaml")
    assert schedule.epochs == epochs and sum(schedule.durations) == epochs
    about = result.report["stages"][0]["search"]
    assert about["takeovers"] > 0
    assert [len(curve) for curve in about["curves"]] == [epochs] * 3
    # Each trained on to the end, the one that had to wait for its place too.
    assert all(curve[-1] is not None and len({*curve} - {None}) > 1 for curve in about["curves"])
