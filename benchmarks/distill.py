"""What each distillation loss costs a training step, and the gradient of singular vectors against torch.linalg.svd's.

    python benchmarks/distill.py [--quick] [--json FILE] [--precision float32]

A step is one of our training loop on 128 random 32x32 images, from raw images to the optimizer: ResNet20 learns from a
ResNet20. All sides take turns in one process, and the median of the turns counts. The first table compares with the
same step in which the teacher is asked, but its answer is not used, so that a ratio below 1 is what the loss itself
costs; `alone` has no teacher, `heads` is a step of the attention heads' training before the student's first.

The second table is about maps (128, positions, channels) as ResNets have them: forward and backward of four right
singular vectors, and whether the gradient is a number where a quarter of the channels is dead.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training import noise  # this file lies beside this one

from compress_aug.distill import (
    Attention,
    Directions,
    Distillation,
    Mutual,
    OnlineMutualLearning,
    Relations,
    SoftLabels,
    ii_kd_terms,
    singular_vectors,
)
from compress_aug.models import load_model
from compress_aug.study.results import cpu_name
from compress_aug.training import CrossEntropy, Settings, Training, build_optimizer

BATCH = 128
VECTORS = 4
SHAPES = ((1024, 16), (256, 32), (64, 64))
LARGE = ((256, 128), (64, 256), (16, 512))


class Asked(CrossEntropy):
    """Cross entropy, after a teacher was asked for nothing."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher.eval()

    def loss(self, batch, logits):
        with torch.no_grad():
            self.teacher(batch.inputs)
        return super().loss(batch, logits)


def net() -> nn.Module:
    """With batch-norm statistics, as after training; the same at each call."""
    torch.manual_seed(0)
    model = load_model("resnet20", classes=10, image_shape=(3, 32, 32))
    with torch.no_grad():
        model(torch.randn(BATCH, 3, 32, 32))
    return model


def objectives(settings: Settings) -> dict[str, Callable[[], object]]:
    def heads(reduction: str = "batchmean") -> Attention:
        return Attention(reduction=reduction, steps=1)

    def ii_kd() -> Distillation:
        return Distillation(
            net(), ii_kd_terms(Relations(), heads("sum"), Directions("sum")), clip="post_clip"
        )

    return {
        "alone": CrossEntropy,
        "asked": lambda: Asked(net()),
        "soft_labels": lambda: SoftLabels(net()),
        "dml": lambda: Distillation(net(), [Mutual()]),
        "dml_online": lambda: OnlineMutualLearning(net(), lambda p: build_optimizer(p, settings)),
        "rkd": lambda: Distillation(net(), [Relations()], clip="post_clip"),
        "mhgd": lambda: Distillation(net(), [heads()]),
        "kd_svd": lambda: Distillation(net(), [Directions()]),
        "ii_kd": ii_kd,
        "heads": lambda: Distillation(net(), [Attention(steps=10**6)]),
    }


def stepper(objective: object, settings: Settings, fabric: Fabric, steps: int) -> Callable[[], None]:
    """Some steps of a training that goes on from call to call."""
    training = Training(net(), noise(64 * BATCH), objective, settings, fabric=fabric)

    def run() -> None:
        taken = 0

        def enough(training: Training) -> bool:
            nonlocal taken
            taken += 1
            return taken >= steps

        training.epoch(enough)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    run()  # the heads' own step, which comes before the first
    return run


def race(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of a call, by side. They take turns, so that whatever else the machine does meets them all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(part) for name, part in times.items()}


def losses(precision: str, fabric: Fabric, steps: int, rounds: int) -> list[dict]:
    settings = Settings(epochs=1000, batch_size=BATCH, precision=precision, lr=1e-3, lr_schedule="constant")
    made = objectives(settings)
    sides = {name: stepper(make(), settings, fabric, steps) for name, make in made.items()}
    seconds = race(sides, rounds)
    speeds = {name: steps * BATCH / part for name, part in seconds.items()}
    return [
        {
            "case": f"resnet20 32x32 B{BATCH} {precision}",
            "ours": name,
            "against": "teacher asked in vain",
            "ratio": round(speeds[name] / speeds["asked"], 3),
            "ours_value": round(speeds[name], 1),
            "against_value": round(speeds["asked"], 1),
            "unit": "images/s",
        }
        for name in made
        if name != "asked"
    ]


def by_svd(maps: Tensor) -> Tensor:
    return torch.linalg.svd(maps, full_matrices=False)[2].mT[:, :, :VECTORS]


def gradients(shape: tuple[int, int], device: torch.device, rounds: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(BATCH, *shape, generator=generator) + 0.5).relu().to(device)
    pull = torch.randn(BATCH, shape[1], VECTORS, generator=generator).to(device)
    dead = maps.clone()
    dead[:, :, : shape[1] // 4] = 0

    def side(function: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
        given = maps.clone().requires_grad_()
        (function(given) * pull).sum().backward()
        assert given.grad is not None
        if device.type == "cuda":
            torch.cuda.synchronize()
        return given.grad

    def ours(maps: Tensor) -> Tensor:
        return singular_vectors(maps, VECTORS)

    seconds = race({"ours": lambda: side(ours, maps), "svd": lambda: side(by_svd, maps)}, rounds)
    return {
        "case": f"singular vectors of {BATCH} maps {shape[0]}x{shape[1]}",
        "ours": "singular_vectors",
        "against": "torch.linalg.svd",
        "ratio": round(seconds["svd"] / seconds["ours"], 2),
        "ours_value": round(1000 * seconds["ours"], 2),
        "against_value": round(1000 * seconds["svd"], 2),
        "unit": "ms",
        "ours_finite": bool(side(ours, dead).isfinite().all()),
        "against_finite": bool(side(by_svd, dead).isfinite().all()),
    }


def show(title: str, rows: list[dict]) -> None:
    table = Table(title=title)
    for column in ("case", "ours", "against"):
        table.add_column(column)
    unit = rows[0]["unit"]
    for column in (f"ours {unit}", f"its {unit}", "ratio"):
        table.add_column(column, justify="right")
    if "ours_finite" in rows[0]:
        table.add_column("finite, ours", justify="right")
        table.add_column("finite, its", justify="right")
    for row in rows:
        values = [f"{row[key]:,.1f}" for key in ("ours_value", "against_value")]
        finite = ["yes" if row[key] else "no" for key in ("ours_finite", "against_finite") if key in row]
        table.add_row(row["case"], row["ours"], row["against"], *values, f"{row['ratio']:.2f}", *finite)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    fabric = Fabric(accelerator=given.device, devices=1)
    steps, rounds = (1, 3) if given.quick else (3, 9)
    speeds = losses(given.precision, fabric, steps, rounds)
    show("a step with each loss, against one in which the teacher is asked in vain", speeds)
    shapes = SHAPES if given.quick else (*SHAPES, *LARGE)
    vectors = [gradients(shape, fabric.device, rounds) for shape in shapes]
    show("four right singular vectors, forward and backward", vectors)
    if given.json:
        report = {
            "benchmark": "distill",
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": str(fabric.device)},
            "versions": {"torch": torch.__version__},
            "rows": [*speeds, *vectors],
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
