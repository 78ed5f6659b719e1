"""images/s of our RandAugment against the others': two operations, magnitude 14 of 0..30, one thread, on a CPU.

    python benchmarks/augment.py [--quick] [--json FILE]
    python benchmarks/augment.py --device cuda [--json FILE]     on a GPU: the time it adds to a training step

All take turns in one process, and the median of the turns counts. Ours takes uint8 (N, C, H, W) and gives it; the
random draw is part of its time. Each of the others finds its images ready in memory in the form that it is fastest
with, and differs from ours in this:

torchvision PIL         one Pillow image after the other, in and out; the same operations, the same bytes for a draw
  , tensors in and out  the same from a uint8 tensor and back into one, which a data set of tensors pays as well
torchvision tensor      one uint8 tensor after the other, because it draws only once for a batch; its own bytes
timm p=0.5              as it comes: half of all operations are left out, interpolation is bilinear or bicubic; Pillow
                        images; 15 operations (Invert and SolarizeAdd, no Identity); magnitude 5 of 0..10
timm p=1                the same, and no operation is left out
  , nearest             both with the interpolation that torchvision and ours have
kornia                  float32 batches, bilinear; 15 operations (as timm), two different ones for the whole batch and
                        a direction for each image
  , small batches       the same in batches of a million values, which is faster on a CPU
albumentations          numpy images (H, W, C); OneOf what it has nearest to the 14 operations, twice, each with a
                        random magnitude up to 14; its own bytes
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from itertools import count, groupby, product
from pathlib import Path
from random import choice

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import v2

from compress_aug.augment import RandAugment
from compress_aug.batch import Batch
from compress_aug.models import load_model
from compress_aug.native import kernels
from compress_aug.study.results import cpu_name
from compress_aug.training import Settings, build_optimizer

MAGNITUDE, LARGEST = 14, 30
RIVALS = ("timm", "kornia", "albumentations")
PACKAGES = ("torch", "torchvision", "numpy", "pillow", *RIVALS, "opencv-python-headless")

KEYS = ("case", "ours", "against", "ratio", "ours_value", "against_value", "unit")

# One call of a side does this many images; the number tells it from all earlier calls.
Side = tuple[int, Callable[[int], object]]


def pictures(number: int, side: int) -> Tensor:
    """Smooth colours with a little noise: the speed of histograms depends on how often a value repeats."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((number, 3, 6, 6), generator=generator) * 235
    smooth = functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth + torch.rand(smooth.shape, generator=generator) * 20).to(torch.uint8)


def pillow_images(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.numpy()) for image in images.permute(0, 2, 3, 1).contiguous()]


def each(items, augment, images: int = 0) -> Side:
    """A side that does one item after the other; what comes out is let go of at once.

    images: how many the items are, unless every item is one
    """

    def call(_: int) -> None:
        for item in items:
            augment(item)

    return images or len(items), call


def ours(images: Tensor, magnitude: int = MAGNITUDE, **options) -> dict[str, Side]:
    """Our executors that work here."""
    place = torch.arange(len(images))
    batch = Batch(images, place, place)
    options = {"crop_padding": 0, "flip": False} | options
    executors = ("torch", "compiled") if kernels() else ("torch",)
    augments = {f"{name} executor": RandAugment(**options, executor=name) for name in executors}
    return {
        name: (len(images), lambda call, augment=augment: augment(batch, magnitude, call, 0))
        for name, augment in augments.items()
    }


def torchvision_sides(images: Tensor) -> Iterator[tuple[str, Side]]:
    augment = v2.RandAugment(2, MAGNITUDE, LARGEST + 1)
    yield "torchvision PIL", each(pillow_images(images), augment)
    back_and_forth = v2.Compose([v2.ToPILImage(), augment, v2.PILToTensor()])
    yield "torchvision PIL, tensors in and out", each(list(images), back_and_forth)
    yield "torchvision tensor", each(list(images), augment)


def timm_sides(images: Tensor) -> Iterator[tuple[str, Side]]:
    from timm.data.auto_augment import rand_augment_transform

    pillow = pillow_images(images)
    for ending, settings in (("", {}), (", nearest", {"interpolation": Image.Resampling.NEAREST})):
        for p in ("0.5", "1"):
            augment = rand_augment_transform(f"rand-m5-n2-p{p}-inc1", settings)
            yield f"timm p={p}{ending}", each(pillow, augment)


def kornia_sides(images: Tensor) -> Iterator[tuple[str, Side]]:
    from kornia.augmentation.auto import RandAugment as KorniaRandAugment

    augment = KorniaRandAugment(n=2, m=MAGNITUDE)
    values = images / 255
    # What a batch takes depends on the two operations drawn for it, hence several in each call.
    yield "kornia", each([values] * 8, augment, 8 * len(values))
    small = values.split(max(1, (1 << 20) // values[0].numel()))
    times = math.ceil(16 / len(small))
    yield "kornia, small batches", each(small * times, augment, times * len(values))


def albumentations_sides(images: Tensor) -> Iterator[tuple[str, Side]]:
    # It would ask the package index for its newest version while it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    one = albumentations.OneOf(albumentations_operations(albumentations, cv2.INTER_NEAREST), p=1)
    augment = albumentations.Compose([one, one])
    yield "albumentations", each(arrays, lambda image: augment(image=image)["image"])


def albumentations_operations(a, nearest: int) -> list:
    """In the order of torchvision, as fast as it has them."""
    part = MAGNITUDE / LARGEST
    strength, move = 0.9 * part, 150 / 331 * part
    shear, factors = math.degrees(math.atan(0.3 * part)), (1 - strength, 1 + strength)
    geometric = {"interpolation": nearest, "p": 1}
    return [
        a.NoOp(p=1),
        a.Affine(shear={"x": (-shear, shear), "y": 0}, **geometric),
        a.Affine(shear={"x": 0, "y": (-shear, shear)}, **geometric),
        a.Affine(translate_percent={"x": (-move, move), "y": 0}, **geometric),
        a.Affine(translate_percent={"x": 0, "y": (-move, move)}, **geometric),
        a.Affine(rotate=(-30 * part, 30 * part), **geometric),
        a.RandomBrightnessContrast(brightness_limit=strength, contrast_limit=0, p=1),
        a.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=factors, hue=(0, 0), p=1),
        a.RandomBrightnessContrast(brightness_limit=0, contrast_limit=strength, p=1),
        a.Sharpen(p=1),
        a.Posterize(num_bits=8 - round(4 * part), p=1),
        a.Solarize(threshold_range=(1 - part, 1 - part), p=1),
        a.AutoContrast(method="pil", p=1),
        a.Equalize(p=1),
    ]


def rivals(images: Tensor) -> dict[str, Side]:
    sides = dict(torchvision_sides(images))
    for name, build in zip(RIVALS, (timm_sides, kornia_sides, albumentations_sides), strict=True):
        if find_spec(name):
            sides |= build(images)
    return sides


def random_magnitudes(images: Tensor) -> dict[str, Side]:
    """torchvision has no random magnitude: one transform for each is the cheapest way to it."""
    augments = [v2.RandAugment(2, magnitude, LARGEST + 1) for magnitude in range(LARGEST + 1)]
    return {"torchvision PIL": each(pillow_images(images), lambda image: choice(augments)(image))}


def with_crop_and_flip(images: Tensor) -> dict[str, Side]:
    """Crop and flip of torchvision's first version, which are faster on Pillow images than those of v2."""
    steps = [v2.RandAugment(2, MAGNITUDE, LARGEST + 1)]
    steps += [transforms.RandomCrop(images.shape[2], padding=4), transforms.RandomHorizontalFlip()]
    return {"torchvision PIL": each(pillow_images(images), transforms.Compose(steps))}


def cases() -> Iterator[tuple[str, dict[str, Side], dict[str, Side]]]:
    """Name, our sides, the others'."""
    small, large = pictures(1024, 32), pictures(64, 224)
    yield "32x32 B1024", ours(small), rivals(small)
    yield "224x224 B64", ours(large), rivals(large)
    yield "32x32 B1024 random M", ours(small, LARGEST, random_magnitude=True), random_magnitudes(small)
    yield "32x32 B1024 +crop+flip", ours(small, crop_padding=4, flip=True), with_crop_and_flip(small)


def race(
    sides: dict[str, Side], rounds: int, least_seconds: float, wait: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """images/s of each side. One turn of a side is as many calls as take the least seconds.

    wait: for what the calls left to a device
    """
    numbers = count()

    def seconds(call: Callable[[int], object], calls: int = 1) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call(next(numbers))
        wait()
        return time.perf_counter() - started

    for _, call in sides.values():
        seconds(call)  # the first call builds its tables
    calls = {name: math.ceil(least_seconds / seconds(call)) for name, (_, call) in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (images, call) in sides.items():
            rates[name].append(images * calls[name] / seconds(call, calls[name]))
    return {name: statistics.median(part) for name, part in rates.items()}


def against_others(rounds: int, least_seconds: float) -> list[dict]:
    """A row for each case, executor and rival."""
    if not kernels():
        print(
            "No rows for the compiled executor: it was not built, or COMPRESS_AUG_NATIVE=0 switches it off."
        )
    for name in RIVALS:
        if not find_spec(name):
            print(f'No rows for {name}: it is missing, pip install -c constraints.txt -e ".[benchmarks]"')
    rows = []
    for case, own, others in cases():
        rates = race(own | others, rounds, least_seconds)
        for mine, other in product(own, others):
            ratio, values = rates[mine] / rates[other], (round(rates[mine], 1), round(rates[other], 1))
            row = case, mine, other, round(ratio, 3), *values, "images/s"
            rows.append(dict(zip(KEYS, row, strict=True)))
    return rows


def against_training(device: str, rounds: int, least_seconds: float) -> list[dict]:
    """ms of our torch executor on a GPU, and of a training step on the same batch."""
    place = torch.arange(1024)
    on_host = Batch(pictures(1024, 32), place % 10, place)
    batch = on_host.to(torch.device(device))
    rows = []
    for ending, options in (("", {"crop_padding": 0, "flip": False}), (" +crop+flip", {})):
        augment = RandAugment(**options, executor="torch")
        here, there = (augment(part, MAGNITUDE, 0, 0).images.cpu() for part in (on_host, batch))
        if not torch.equal(here, there):
            sys.exit(f"The augmentation gives other bytes on {device} than on the CPU: nothing was timed.")
        sides: dict[str, Side] = {
            "ours": (1, lambda call, augment=augment: augment(batch, MAGNITUDE, call, 0)),
            "step": (1, training_step(batch)),
        }
        rates = race(sides, rounds, least_seconds, torch.cuda.synchronize)
        ratio, values = rates["ours"] / rates["step"], [round(1000 / rate, 3) for rate in rates.values()]
        row = f"32x32 B1024{ending}", f"torch executor on {device}", "ResNet20 bf16 training step"
        row = dict(zip(KEYS, (*row, round(ratio, 3), *values, "ms"), strict=True))
        rows.append(row | {"percent_of_step": round(100 / ratio, 1)})
    return rows


def training_step(batch: Batch) -> Callable[[int], object]:
    """Forward, backward and optimizer on images that are already floats."""
    device, layout = batch.images.device, torch.channels_last
    model = load_model("resnet20", classes=10, image_shape=(3, 32, 32)).to(device).to(memory_format=layout)
    optimizer = build_optimizer(model.parameters(), Settings(epochs=1))
    inputs = (batch.images / 255 - 0.5).contiguous(memory_format=layout)

    def step(_: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(inputs).float(), batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def show(rows: list[dict]) -> None:
    table = Table(title="augmentation: ours against others")
    for column in ("case", "ours", "against"):
        table.add_column(column)
    for column in (f"ours {rows[0]['unit']}", f"its {rows[0]['unit']}", "ratio"):
        table.add_column(column, justify="right")
    for (case, mine), part in groupby(rows, lambda row: (row["case"], row["ours"])):
        table.add_section()
        for row in part:
            digits = 0 if row["unit"] == "images/s" else 2
            values = [f"{row[key]:,.{digits}f}" for key in ("ours_value", "against_value")]
            table.add_row(case, mine, row["against"], *values, f"{row['ratio']:.2f}")
            case = mine = ""
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: see above")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use: leave out --device cuda.")
    torch.set_num_threads(1)
    effort = (3, 0.05) if given.quick else (11, 0.4)
    rows = against_others(*effort) if given.device == "cpu" else against_training(given.device, *effort)
    show(rows)
    if given.json:
        machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": given.device}
        if given.device == "cuda":
            machine["gpu"] = torch.cuda.get_device_name()
        elif found := kernels():
            machine["instructions"] = found.level
        versions = {found.name: found.version for found in distributions() if found.name in PACKAGES}
        report = {"benchmark": "augment", "machine": machine, "versions": versions, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
