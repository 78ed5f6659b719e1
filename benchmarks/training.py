"""images/s of our training loop against a bare hand-written one: same net, precision, layout, crop and flip.

    python benchmarks/training.py [--quick] [--json FILE]

Both loops take turns in one process, each for a few hundred steps at a time; the ratio is that of their medians.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from compress_aug.augment import RandAugment, crop_and_flip
from compress_aug.data import Data, MemorySource
from compress_aug.models import load_model
from compress_aug.precision import choose_precision
from compress_aug.study.results import cpu_name
from compress_aug.training import Settings, Training, build_optimizer

BATCH = 128
CASES = (("resnet20", "auto"), ("resnet20", "float32"), ("resnet8", "auto"))


def noise(images: int) -> Data:
    """Random 32x32 images: speed does not depend on what is on them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    source = MemorySource(pixels, torch.arange(images) % 10, torch.arange(images))
    none = MemorySource(pixels[:0], torch.arange(0), torch.arange(0))
    names = tuple(str(n) for n in range(10))
    return Data("noise", names, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, 4, True, source, none, none)


def bare_epoch(model, data: Data, device, dtype, epoch: int) -> float:
    """What one would write by hand: images in memory, crop and flip, one forward, one backward, one step."""
    images, targets = (
        torch.cat(part)
        for part in zip(*((b.images, b.targets) for b in data.train.batches(BATCH)), strict=True)
    )
    settings = Settings(epochs=1)
    optimizer = build_optimizer(model.parameters(), settings)
    model.train()
    started = time.perf_counter()
    order = torch.randperm(len(images), device=device)
    for start in range(0, len(images) - BATCH + 1, BATCH):
        rows = order[start : start + BATCH]
        raw = crop_and_flip(images[rows], rows.cpu().numpy(), padding=4, flip=True, epoch=epoch, seed=0)
        inputs = data.normalise(raw).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = functional.cross_entropy(model(inputs).float(), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def our_epoch(model, data: Data, fabric: Fabric, precision: str) -> float:
    """The same epoch by `Training`, without the time it takes to set it up."""
    training = Training(
        model,
        data,
        settings=Settings(epochs=1, batch_size=BATCH, precision=precision),
        augment=RandAugment(crop_padding=4, flip=True),
        fabric=fabric,
    )
    started = time.perf_counter()
    training.epoch()
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, precision: str, fabric: Fabric, steps: int, rounds: int) -> dict:
    data = noise(steps * BATCH).to(fabric.device)
    dtype = choose_precision(fabric.device, precision).autocast
    models = [
        load_model(name, classes=10, image_shape=(3, 32, 32))
        .to(fabric.device)
        .to(memory_format=torch.channels_last)
        for _ in range(2)
    ]
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        ours = our_epoch(models[0], data, fabric, precision)
        bare = bare_epoch(models[1], data, fabric.device, dtype, turn)
        if turn:  # the first turn warms up
            times[0].append(ours)
            times[1].append(bare)
    ours, bare = (steps * BATCH / statistics.median(part) for part in times)
    kind = "bf16" if dtype else "float32"
    return {
        "case": f"{name} 32x32 B{BATCH} {kind}",
        "ours": "compress_aug.fit",
        "against": "bare loop",
        "ratio": round(ours / bare, 3),
        "ours_value": round(ours, 1),
        "against_value": round(bare, 1),
        "unit": "images/s",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    fabric = Fabric(accelerator=given.device, devices=1)
    steps, rounds = (8, 5) if given.quick else (40, 9)
    rows = []
    for name, precision in CASES:
        row = measure(name, precision, fabric, steps, rounds)
        if row["case"] not in {earlier["case"] for earlier in rows}:  # no bf16 here: auto is float32
            rows.append(row)
    table = Table(title="training: ours against a bare loop")
    for column in ("case", "ours images/s", "bare images/s", "ratio"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(
            row["case"], f"{row['ours_value']:,.0f}", f"{row['against_value']:,.0f}", f"{row['ratio']:.3f}"
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if given.json:
        report = {
            "benchmark": "training",
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": str(fabric.device)},
            "versions": {"torch": torch.__version__},
            "rows": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
