"""What `magnitude: auto` rests on and comes to: the gap by M and zeros, then auto against constant magnitudes.

    python benchmarks/auto.py --data path/to/cifar10 [--quick | --seeds N] [--json FILE]

A ResNet8 is trained on 3,000 images at M=14 for 24 epochs; it is the reference from then on. First table: pruned,
trained at M=8 for three epochs, then by how much more of its knowledge than the reference it loses at each M, on 1,000
images (one seed, with its standard error). Second table: pruned and trained for eight epochs at lr 0.02 without
augmentation, at M=4, M=14, or with auto at several gaps: test accuracy on 4,000 images by seed, and the last M (...).
"""

import argparse
import json
import sys
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from compress_aug import Data, Settings, Training, copy_model, load_data, load_model, mask_smallest, measure
from compress_aug.augment import AutoMagnitude, RandAugment, difficulty, knowledge_sums
from compress_aug.study.results import cpu_name
from compress_aug.surgery import freeze

SETTINGS = Settings(epochs=24, batch_size=64, lr=0.1)
LATER = replace(SETTINGS, lr=0.02)
MAGNITUDES = (4, 8, 14, 20, 30)
ZEROS = (0.0, 0.4, 0.6, 0.8, 0.9)
RACED = (0.0, 0.6, 0.8)
GAPS = (0.01, 0.02, 0.04)
PROBED = 1000


def augment(data: Data) -> RandAugment:
    return RandAugment(crop_padding=data.crop_padding, flip=data.flip)


def trained(
    model: nn.Module,
    data: Data,
    settings: Settings,
    how: RandAugment | AutoMagnitude,
    m: int | None,
    seed: int,
) -> Training:
    training = Training(model, data, settings=settings, augment=how, magnitude=lambda progress: m, seed=seed)
    while training.epochs_done < settings.epochs:
        training.epoch()
    return training


def pruned(dense: nn.Module, zeros: float) -> nn.Module:
    model = copy_model(dense).requires_grad_(True)
    if zeros:
        mask_smallest(model, zeros)
    return model


@torch.no_grad()
def gap(student: nn.Module, reference: nn.Module, data: Data, m: int) -> tuple[float, float]:
    """By how much more of its knowledge the student loses at M=m, and its standard error."""
    how, sums = augment(data), None
    for batch in islice(data.train.batches(250, order_seed=1), PROBED // 250):
        plain, hard = (data.normalise(how(batch, level, 9, 9).images) for level in (None, m))
        found = knowledge_sums(
            (student(plain), student(hard)), (reference(plain), reference(hard)), batch.targets
        )
        sums = found if sums is None else sums + found
    measured = difficulty(sums)
    if measured is None:
        sys.exit("The nets know nothing of the plain images yet: train for longer.")
    return measured.gap, measured.gap_error


def race(dense: nn.Module, data: Data, zeros: float, epochs: int, seeds: int) -> list[dict]:
    """Each way of training behind the same pruning, once for each seed."""
    ways: list[tuple[str, int | None, float | None]] = [
        ("none", None, None),
        ("M=4", 4, None),
        ("M=14", 14, None),
    ]
    ways += [(f"auto, {one:g}", None, one) for one in GAPS]
    rows = []
    for name, m, bound in ways:
        for seed in range(1, seeds + 1):
            how = augment(data)
            auto = None if bound is None else AutoMagnitude(how, dense, gap=bound)
            training = trained(
                pruned(dense, zeros), data, replace(LATER, epochs=epochs), auto or how, m, seed
            )
            accuracy = measure.accuracy(training.finished_model(), data.test.batches(1000), data.normalise)
            last = training.history[-1]["magnitude"]
            rows.append(
                {
                    "zeros": zeros,
                    "how": name,
                    "seed": seed,
                    "accuracy": accuracy,
                    "last_magnitude": last[1] if auto and last else None,
                }
            )
    return rows


def show(curves: dict[float, list[tuple[float, float]]], rows: list[dict], reached: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"gap by M and zeros; the reference has {reached:.1%}")
    for column in ("zeros", *(f"M={m}" for m in MAGNITUDES)):
        table.add_column(column, justify="right")
    for zeros, curve in curves.items():
        table.add_row(f"{zeros:.0%}", *(f"{value:+.3f} ± {error:.3f}" for value, error in curve))
    console.print(table)
    table = Table(title="test accuracy by seed, %, and the last M")
    ways = list(dict.fromkeys(row["how"] for row in rows))
    for column in ("zeros", *ways):
        table.add_column(column, justify="right")
    for zeros in dict.fromkeys(row["zeros"] for row in rows):
        cells = []
        for way in ways:
            found = [row for row in rows if row["zeros"] == zeros and row["how"] == way]
            cells.append(
                ", ".join(
                    f"{100 * row['accuracy']:.1f}"
                    + ("" if row["last_magnitude"] is None else f" ({row['last_magnitude']})")
                    for row in found
                )
            )
        table.add_row(f"{zeros:.0%}", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of 32x32 images, such as CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="one epoch of everything: to see that it runs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    data = load_data({"folder": str(given.data), "train": 3000, "test": 4000, "validation": 0.1})
    dense_epochs, short, later, seeds = (1, 1, 1, 1) if given.quick else (24, 3, 8, given.seeds)
    torch.manual_seed(0)
    net = load_model("resnet8", classes=len(data.classes), image_shape=data.image_shape)
    training = trained(net, data, replace(SETTINGS, epochs=dense_epochs), augment(data), 14, 0)
    dense = freeze(training.finished_model())
    reached = measure.accuracy(dense, data.test.batches(1000), data.normalise)
    curves = {}
    for zeros in ZEROS:
        student = trained(pruned(dense, zeros), data, replace(LATER, epochs=short), augment(data), 8, 0)
        curves[zeros] = [gap(student.finished_model().eval(), dense, data, m) for m in MAGNITUDES]
    rows = [row for zeros in RACED for row in race(dense, data, zeros, later, seeds)]
    show(curves, rows, reached)
    if given.json:
        report = {
            "benchmark": "auto",
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": "cpu"},
            "versions": {"torch": version("torch")},
            "reference_accuracy": reached,
            "gaps": {str(zeros): curve for zeros, curve in curves.items()},
            "rows": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
