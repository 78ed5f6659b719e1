"""Why `loss: rkd` is clipped by default: how long its gradient is, and where trainings end with and without the clip.

    python benchmarks/rkd.py [--quick | --seeds N --epochs N --batches 32,64,128] [--json FILE]

On the digits of scikit-learn, in float32, with a ResNet14 of six epochs as the teacher. First table: the gradient of
RKD (distance 50, angle 100, as in the code of arXiv 2004.08861) against that of the cross entropy, in fresh nets and
after two epochs of cross entropy alone. Second table: test accuracy, %, the mean of the seeds, in brackets the lowest.
"""

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from compress_aug import Data, Settings, Training, copy_model, load_data, load_model, measure
from compress_aug.distill import Distillation, Relations, rkd_loss
from compress_aug.study.results import cpu_name
from compress_aug.training import CrossEntropy


def small(*, norms: bool) -> nn.Module:
    """Two convolutions and a linear layer."""
    layers: list[nn.Module] = []
    for before, channels in ((3, 8), (8, 16)):
        layers += [
            nn.Conv2d(before, channels, 3, 2, 1),
            *([nn.BatchNorm2d(channels)] if norms else []),
            nn.ReLU(),
        ]
    side = 1 if norms else 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(16 * side**2, 10))


STUDENTS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "ResNet8": (lambda: load_model("resnet8", classes=10, image_shape=(3, 32, 32)), 0.1),
    "two convolutions with batch norm": (lambda: small(norms=True), 0.1),
    "two convolutions without": (lambda: small(norms=False), 0.05),
}
WAYS = ("cross entropy alone", "rkd", "rkd, clip: false")


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def trained(
    model: nn.Module, data: Data, how: CrossEntropy | Distillation, seed: int = 0, **given: float
) -> nn.Module:
    settings = Settings(precision="float32", **given)
    fabric = Fabric(accelerator="cpu", devices=1)
    training = Training(model, data, objective=how, settings=settings, seed=seed, fabric=fabric)
    while training.epochs_done < settings.epochs:
        training.epoch()
    return training.finished_model().eval()


def gradient_ratio(student: nn.Module, teacher: nn.Module, data: Data, batch_size: int) -> float:
    """The length of RKD's gradient by that of the cross entropy, on one batch."""
    batch = next(iter(data.train.batches(batch_size, order_seed=1, drop_last=True)))
    images = data.normalise(batch.images)
    with torch.no_grad():
        theirs = teacher(images)
    weights = list(student.requires_grad_(True).train().parameters())
    ours = student(images)

    def length(loss: torch.Tensor) -> float:
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return torch.cat([one.flatten() for one in found if one is not None]).norm().item()

    return length(rkd_loss(ours, theirs)) / length(F.cross_entropy(ours, batch.targets))


def objective(way: str, teacher: nn.Module) -> CrossEntropy | Distillation:
    if way == WAYS[0]:
        return CrossEntropy()
    return Distillation(copy_model(teacher), [Relations()], clip="post_clip" if way == WAYS[1] else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one epoch, one seed, one size: to see that it runs"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batches", default="32,64,128")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    seeds, epochs = (1, 1) if given.quick else (given.seeds, given.epochs)
    sizes = [64] if given.quick else [int(text) for text in given.batches.split(",")]
    data = load_data("digits")
    console = Console(width=None if sys.stdout.isatty() else 120)
    resnet14 = seeded(lambda: load_model("resnet14", classes=10, image_shape=data.image_shape), 9)
    teacher = trained(resnet14, data, CrossEntropy(), epochs=1 if given.quick else 6, batch_size=64, lr=0.1)
    reached = measure.accuracy(teacher, data.test.batches(1000), data.normalise)

    table = Table(title=f"RKD's gradient / cross entropy's; the teacher has {reached:.1%} of the test images")
    for column in ("student", "state", *(f"batch {size}" for size in sizes)):
        table.add_column(column)
    gradients = []
    for name, (build, lr) in STUDENTS.items():
        fresh = seeded(build, 1)
        after = trained(seeded(build, 1), data, CrossEntropy(), epochs=2, batch_size=64, lr=lr / 2)
        for state, student in (("fresh", fresh), ("two epochs", after)):
            row = [gradient_ratio(student, teacher, data, size) for size in sizes]
            gradients.append({"student": name, "state": state, "ratios": dict(zip(sizes, row, strict=True))})
            table.add_row(name, state, *(f"{ratio:.0f}" for ratio in row))
    console.print(table)

    table = Table(title=f"test accuracy after {epochs} epochs, %: mean (lowest) of {seeds} seeds")
    for column in ("student", "batch", *WAYS):
        table.add_column(column)
    rows = []
    for name, (build, lr) in STUDENTS.items():
        for size in sizes:
            cells = []
            for way in WAYS:
                found = []
                for seed in range(seeds):
                    net = trained(
                        seeded(build, seed + 1),
                        data,
                        objective(way, teacher),
                        seed,
                        epochs=epochs,
                        batch_size=size,
                        lr=lr,
                    )
                    found.append(100 * measure.accuracy(net, data.test.batches(1000), data.normalise))
                rows.append({"student": name, "batch": size, "how": way, "accuracies": found})
                cells.append(f"{mean(found):.1f} ({min(found):.1f})")
            table.add_row(name, str(size), *cells)
    console.print(table)
    if given.json:
        report = {
            "benchmark": "rkd",
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": "cpu"},
            "versions": {"torch": version("torch")},
            "teacher_accuracy": reached,
            "gradients": gradients,
            "rows": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
