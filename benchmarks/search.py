"""What searching for augmentation costs beyond the training: the population driver, `magnitude: auto`, and Ray.

    python benchmarks/search.py [--quick] [--json FILE] [--precision float32]

driver  `search_population`, with its files, against the same epochs of the same trainings one after another. Every
        policy does the same here (RandAugment at M 4), so that both sides have the same work. The goal is 5 %
auto    a training step whose M is found, against one with M 4. M is held at 4, while all that finds it is done; a turn
        has as many probes as a long training would have in as many steps. The goal is 10 %
ray     the same search by Ray Tune on all cores of this machine, if Ray is installed, against the in-process driver;
        starting and stopping Ray is part of it

Random 32x32 images. Both sides take turns in one process; the ratio is the median of the turns' ratios. `extra` is
what the driver does between epochs, or the probes of a step, as a share of the rest, by one clock: on a busy machine,
where two sides differ by more than that, it is the number to trust.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch import nn
from training import noise  # this file lies beside this one

from compress_aug.augment import AutoMagnitude, RandAugment
from compress_aug.data import Data
from compress_aug.models import load_model
from compress_aug.search import PolicySlot, search_population
from compress_aug.study.results import cpu_name
from compress_aug.surgery import freeze
from compress_aug.training import Settings, Training

BATCH = 128
MAGNITUDE = 4
POPULATION, EPOCHS, EVERY = 4, 4, 2


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_model(name, classes=10, image_shape=(3, 32, 32))


def held_out(images: int) -> Data:
    """Random images to train on, and half as many to validate on."""
    data = noise(images)
    return replace(data, validation=noise(images // 2).train)


def clocked(thing: object, name: str) -> Callable[[], float]:
    """How many seconds all calls of that method have taken so far."""
    method, seconds = getattr(thing, name), 0.0

    def timed(*arguments: object) -> object:
        nonlocal seconds
        _wait()
        started = time.perf_counter()
        given = method(*arguments)
        _wait()
        seconds += time.perf_counter() - started
        return given

    setattr(thing, name, timed)
    return lambda: seconds


# ---------------------------------------------------------------- the population driver


def a_training(name: str, images: int, precision: str, device: str) -> tuple[Training, PolicySlot]:
    """A training at its beginning, whose policies all do the same."""
    change = RandAugment()
    slot = PolicySlot(
        lambda policy: lambda batch, magnitude, epoch, seed: change(batch, MAGNITUDE, epoch, seed)
    )
    settings = Settings(epochs=EPOCHS, batch_size=BATCH, precision=precision)
    fabric = Fabric(accelerator=device, devices=1)
    return Training(net(name), held_out(images), settings=settings, augment=slot, fabric=fabric), slot


def bare(make: Callable[[], tuple[Training, PolicySlot]]) -> float:
    """Seconds of the members' epochs, one member after the other."""
    trainings = [make()[0] for _ in range(POPULATION)]
    started = time.perf_counter()
    for training in trainings:
        for _ in range(EPOCHS):
            training.epoch()
    _wait()
    return time.perf_counter() - started


def driven(make: Callable[[], tuple[Training, PolicySlot]]) -> tuple[float, float]:
    """Seconds of a search, and how many of them are not spent in epochs, as a share of those that are."""
    training, slot = make()
    in_epochs = clocked(training, "epoch")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        search_population(training, slot, population=POPULATION, every=EVERY, folder=Path(folder))
        total = time.perf_counter() - started
    return total, total / in_epochs() - 1


def driver(name: str, images: int, precision: str, device: str, rounds: int) -> dict:
    make = partial(a_training, name, images, precision, device)
    turns = []
    for turn in range(rounds + 1):
        (ours, extra), against = driven(make), bare(make)
        if turn:  # the first turn warms up
            turns.append((ours, against, extra))
    ours, against, extra = (statistics.median(part) for part in zip(*turns, strict=True))
    ratio = statistics.median(against / ours for ours, against, _ in turns)
    return {
        "case": f"{name}, {POPULATION} members x {EPOCHS} epochs of {images} images, {precision}",
        "ours": "search_population",
        "against": "trainings without a driver",
        "ratio": round(ratio, 3),
        "ours_value": round(ours, 2),
        "against_value": round(against, 2),
        "unit": "s",
        "extra": round(extra, 4),
    }


# ---------------------------------------------------------------- magnitude: auto


def stepper(training: Training) -> Callable[[int], float]:
    """Seconds of so many steps of a training that goes on from call to call."""

    def run(steps: int) -> float:
        taken = 0

        def enough(training: Training) -> bool:
            nonlocal taken
            taken += 1
            return taken >= steps

        started = time.perf_counter()
        while taken < steps:
            training.epoch(enough)
        _wait()
        return time.perf_counter() - started

    return run


def auto(student: str, reference: str, precision: str, fabric: Fabric, probes: int, rounds: int) -> dict:
    settings = Settings(epochs=10**6, batch_size=BATCH, precision=precision, lr=1e-3, lr_schedule="constant")
    # Nothing makes this M rise or fall: both sides augment alike.
    found = AutoMagnitude(
        RandAugment(), freeze(net(reference)), start=MAGNITUDE, most=MAGNITUDE, known=0.0, gap=1e6
    )
    data = noise(16 * BATCH)
    ours = Training(net(student), data, settings=settings, augment=found, fabric=fabric)
    plain = Training(
        net(student),
        data,
        settings=settings,
        augment=RandAugment(),
        magnitude=lambda progress: MAGNITUDE,
        fabric=fabric,
    )
    sides = [stepper(ours), stepper(plain)]
    in_probes = clocked(found, "_probe")
    steps = probes * (found.interval or 1)
    turns = []
    for turn in range(rounds + 1):
        before = in_probes()
        pair = [side(steps) for side in sides]
        if turn:
            turns.append((*pair, (in_probes() - before) / (pair[0] - in_probes() + before)))
    seconds = [statistics.median(part) for part in zip(*turns, strict=True)]
    speeds = [steps * BATCH / part for part in seconds[:2]]
    return {
        "case": f"{student} by {reference}, a probe every {found.interval} steps, B{BATCH} {precision}",
        "ours": "magnitude: auto",
        "against": f"magnitude: {MAGNITUDE}",
        "ratio": round(statistics.median(plain / ours for ours, plain, _ in turns), 3),
        "ours_value": round(speeds[0], 1),
        "against_value": round(speeds[1], 1),
        "unit": "images/s",
        "extra": round(seconds[2], 4),
    }


# ---------------------------------------------------------------- Ray


def on_ray(name: str, images: int, precision: str) -> dict:
    from compress_aug.search.ray_driver import search_population_on_ray

    make = partial(a_training, name, images, precision, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        search_population_on_ray(make, epochs=EPOCHS, folder=Path(folder), population=POPULATION, every=EVERY)
        against = time.perf_counter() - started
    started = time.perf_counter()
    driven(make)
    ours = time.perf_counter() - started
    return {
        "case": f"{name}, {POPULATION} members x {EPOCHS} epochs of {images} images, {precision}",
        "ours": "search_population",
        "against": "Ray Tune",
        "ratio": round(against / ours, 3),
        "ours_value": round(ours, 2),
        "against_value": round(against, 2),
        "unit": "s",
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(rows: list[dict]) -> None:
    table = Table(title="searching for augmentation: what it costs beyond the training")
    for column in ("case", "ours", "against"):
        table.add_column(column)
    for column in ("ours", "its", "", "ratio", "extra"):
        table.add_column(column, justify="right")
    for row in rows:
        values = [f"{row[key]:,.1f}" for key in ("ours_value", "against_value")]
        extra = f"{row['extra']:.1%}" if "extra" in row else ""
        table.add_row(
            row["case"], row["ours"], row["against"], *values, row["unit"], f"{row['ratio']:.3f}", extra
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bf16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    fabric = Fabric(accelerator=given.device, devices=1)
    name, larger, images, rounds = (
        ("resnet8", "resnet20", 256, 2) if given.quick else ("resnet20", "resnet56", 1024, 3)
    )
    rows = [driver(name, images, given.precision, given.device, rounds)]
    probes, turns = (1, 5) if given.quick else (2, 9)
    for reference in (name, larger):
        rows.append(auto(name, reference, given.precision, fabric, probes, turns))
    if importlib.util.find_spec("ray") is not None:
        rows.append(on_ray(name, images, given.precision))
    show(rows)
    if given.json:
        packages = ("torch", "ray") if importlib.util.find_spec("ray") else ("torch",)
        report = {
            "benchmark": "search",
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": str(fabric.device)},
            "versions": {package: version(package) for package in packages},
            "rows": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
