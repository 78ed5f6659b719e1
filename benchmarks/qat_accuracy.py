"""Accuracy after quantization-aware training: ours against stock Brevitas and ONNX Runtime's static quantization.

Run by `python benchmarks/qat.py --accuracy --data path/to/cifar10 [--quick | --images N --epochs N --seeds N]
[--json FILE]`; with a file, a comparison that was stopped goes on behind the last seed that it finished.

For each seed a ResNet20 is trained once in float, and every side goes on from these weights on the same images, with
the same epochs, learning rate, order and augmentation (crop and flip), in the same training loop:

ours               `quantize` with the same bits everywhere, then training; scales calibrated on the same images
ours, 8-bit ends   the same with our default, 8 bits for the first and the last layer
stock Brevitas     `brevitas.graph.quantize` as in qat.py, the same bits everywhere, then the same training
ORT static         8/8 only: `onnxruntime.quantization.quantize_static` of the float file, no training

Accuracies are those of the finished models: ours after `finalize`, ONNX Runtime's by running its file. The spread
over the seeds is printed beside the means; these are small trainings, so look at it.
"""

import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from compress_aug import (
    Data,
    RandAugment,
    Settings,
    Training,
    copy_model,
    finalize,
    load_data,
    load_model,
    measure,
    quantize,
    write,
)
from compress_aug.study.results import cpu_name

BITS = (8, 4, 2)
CALIBRATION = 512
# No batch norm is left on either side: at 0.01 both lose half of what they knew at 8 bits.
QAT_LR = 1e-3


def trained(model: nn.Module, data: Data, epochs: int, lr: float, seed: int) -> nn.Module:
    """The model after a training with crop and flip."""
    augment = RandAugment(crop_padding=data.crop_padding, flip=data.flip)
    settings = Settings(epochs=epochs, batch_size=64, lr=lr, weight_decay=1e-4)
    training = Training(model, data, settings=settings, augment=augment, seed=seed)
    while training.epochs_done < epochs:
        training.epoch()
    return training.finished_model().eval()


def accuracy(model: nn.Module, data: Data) -> float:
    return measure.accuracy(model, data.test.batches(500), data.normalise)


def calibration(data: Data) -> list[Tensor]:
    batches = data.train.batches(128, order_seed=0)
    return [
        data.normalise(batch.images) for batch, _ in zip(batches, range(CALIBRATION // 128), strict=False)
    ]


def ours(dense: nn.Module, bits: int, ends: int, data: Data, epochs: int, seed: int) -> tuple[float, float]:
    """(calibrated only, trained): accuracies of the finalized models."""
    images = calibration(data)
    model = quantize(
        copy_model(dense),
        images[0][:1],
        weights=bits,
        activations=bits,
        first_and_last=ends,
        calibration=images,
    )
    before = accuracy(finalize(copy_model(model)), data)
    return before, accuracy(finalize(trained(model, data, epochs, QAT_LR, seed)), data)


def theirs(
    dense: nn.Module, bits: int, data: Data, epochs: int, seed: int, stock_model
) -> tuple[float, float]:
    """The same for stock Brevitas."""
    images = calibration(data)
    model = stock_model(copy_model(dense), bits, images)
    before = accuracy(copy_model(model).eval(), data)
    return before, accuracy(trained(model, data, epochs, QAT_LR, seed), data)


def static(dense: nn.Module, data: Data, folder: Path) -> float:
    """The accuracy of what ONNX Runtime's own static quantization makes of the float file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterable[Tensor]) -> None:
            self.batches = iter(batches)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch.numpy()}

    plain, prepared, made = (folder / f"{name}.onnx" for name in ("float", "prepared", "static"))
    write(dense, plain, image_shape=data.image_shape)
    quant_pre_process(plain, prepared)
    quantize_static(prepared, made, Reader(calibration(data)), quant_format=QuantFormat.QDQ, per_channel=True)
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    right = total = 0
    for batch in data.test.batches(500):
        (logits,) = session.run(None, {"input": data.normalise(batch.images).numpy()})
        right += int((np.argmax(logits, 1) == batch.targets.numpy()).sum())
        total += len(logits)
    return right / total


def row(bits: int, side: str, against: str, pairs: list[tuple[float, float]], before: float | None) -> dict:
    """Means over the seeds, and the differences ours - theirs seed by seed."""
    differences = [one - other for one, other in pairs]
    return {
        "case": f"resnet20 w{bits}a{bits}",
        "ours": side,
        "against": against,
        "ratio": round(statistics.mean(one / other for one, other in pairs), 4),
        "ours_value": round(statistics.mean(one for one, _ in pairs), 4),
        "against_value": round(statistics.mean(other for _, other in pairs), 4),
        "unit": "accuracy",
        "difference": round(statistics.mean(differences), 4),
        "spread": round(statistics.stdev(differences), 4) if len(pairs) > 1 else None,
        "calibrated_only": None if before is None else round(before, 4),
        "seeds": len(pairs),
    }


def one_seed(seed: int, data: Data, epochs: tuple[int, int], stock_model, console: Console) -> dict:
    """Of all sides, from one float start: {"float": ..., "ORT static": ..., "8 ours": [before, after], ...}."""
    torch.manual_seed(seed)
    model = load_model("resnet20", classes=len(data.classes), image_shape=data.image_shape)
    dense = trained(model, data, epochs[0], 0.1, seed)
    with tempfile.TemporaryDirectory() as place:
        found: dict = {"float": accuracy(dense, data), "ORT static": static(dense, data, Path(place))}
    console.print(
        f"seed {seed}: float {found['float']:.2%}, ORT static {found['ORT static']:.2%}", highlight=False
    )
    for bits in BITS:
        sides = {
            "ours": ours(dense, bits, bits, data, epochs[1], seed),
            "stock Brevitas": theirs(dense, bits, data, epochs[1], seed, stock_model),
        }
        if bits != 8:
            sides["ours, 8-bit ends"] = ours(dense, bits, 8, data, epochs[1], seed)
        found |= {f"{bits} {name}": list(pair) for name, pair in sides.items()}
        said = ", ".join(f"{name} {pair[0]:.2%} -> {pair[1]:.2%}" for name, pair in sides.items())
        console.print(f"seed {seed}, {bits} bits, calibrated -> trained: {said}", highlight=False)
    return found


def rows_of(found: list[dict]) -> list[dict]:
    """The rows of the table, from what each seed gave."""

    def after(name: str) -> list[float]:
        return [one[name][1] for one in found]

    def before(name: str) -> list[float]:
        return [one[name][0] for one in found]

    rows = []
    for bits in BITS:
        for name in ("ours", "ours, 8-bit ends") if bits != 8 else ("ours",):
            mine, stock = after(f"{bits} {name}"), after(f"{bits} stock Brevitas")
            calibrated = statistics.mean(before(f"{bits} {name}"))
            rows.append(row(bits, name, "stock Brevitas", list(zip(mine, stock, strict=True)), calibrated))
    statics = [one["ORT static"] for one in found]
    for name, values in (("ours", after("8 ours")), ("ours, calibrated only", before("8 ours"))):
        rows.append(row(8, name, "ORT static", list(zip(values, statics, strict=True)), None))
    return rows


def compare(
    folder: Path, images: int, later: int, seeds: int, quick: bool, json_file: Path | None, stock_model
) -> None:
    """Train, quantize, train for some later epochs, print the table.

    json_file:   written after each seed; the seeds that it holds already, of the same numbers, are not run again
    stock_model: (float model, bits, calibration) -> Brevitas' model
    """
    images, epochs, seeds = (400, (1, 1), 1) if quick else (images, (8, later), seeds)
    data = load_data({"folder": str(folder), "train": images, "test": 500 if quick else min(images, 10_000)})
    console = Console(width=None if sys.stdout.isatty() else 130)
    setting = {"images": images, "epochs": list(epochs), "test": len(data.test)}
    found = _earlier(json_file, setting)
    for seed in range(seeds):
        if str(seed) not in found:
            found[str(seed)] = one_seed(seed, data, epochs, stock_model, console)
            _write(json_file, setting, found)
    rows = rows_of(list(found.values()))
    floats = [one["float"] for one in found.values()]
    table = Table(
        title=f"{images:,} training images, {epochs[0]} float + {epochs[1]} epochs, {len(found)} seeds; "
        f"float {statistics.mean(floats):.2%}"
    )
    for column in ("case", "ours", "against"):
        table.add_column(column)
    for column in ("ours %", "theirs %", "difference", "spread", "ours before training %"):
        table.add_column(column, justify="right")
    for one in rows:
        spread = "" if one["spread"] is None else f"{100 * one['spread']:.2f}"
        before = "" if one["calibrated_only"] is None else f"{100 * one['calibrated_only']:.2f}"
        values = [f"{100 * one[key]:.2f}" for key in ("ours_value", "against_value")]
        difference = f"{100 * one['difference']:+.2f}"
        table.add_row(one["case"], one["ours"], one["against"], *values, difference, spread, before)
    console.print(table)


def _earlier(json_file: Path | None, setting: dict) -> dict[str, dict]:
    if json_file is None or not json_file.is_file():
        return {}
    before = json.loads(json_file.read_text())
    return dict(before.get("seeds", {})) if before.get("setting") == setting else {}


def _write(json_file: Path | None, setting: dict, found: dict[str, dict]) -> None:
    if json_file is None:
        return
    report = {
        "benchmark": "qat_accuracy",
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": "cpu"},
        "versions": {name: version(name) for name in ("torch", "brevitas", "onnxruntime")},
        "rows": rows_of(list(found.values())),
        "setting": setting,
        "seeds": found,
    }
    json_file.write_text(json.dumps(report, indent=1) + "\n")
