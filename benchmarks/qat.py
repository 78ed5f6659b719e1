"""images/s of a quantization-aware training step: ours against a stock Brevitas model of the same bits, on a CPU.

    python benchmarks/qat.py [--quick] [--json FILE] [--cases WORD] [--bits 2..8]
    python benchmarks/qat.py --accuracy --data path/to/cifar10 [--quick | --images N --epochs N --seeds N]

A step is forward, backward and SGD on one batch of 128 random 32x32 images that are normalised already, in
channels_last. All sides take turns in one process, and the median of the turns counts. They are:

stock Brevitas     `brevitas.graph.quantize`: `preprocess_for_quantize` (which merges the batch norms), then `quantize`
                   with scales per channel for weights and learned ones for activations, past the phase in which
                   they are collected; QuantReLU, QuantIdentity, QuantConv2d and QuantLinear
torch executor     our `quantize` with batch norms folded, fake quantization by plain torch operations
compiled executor  the same model, fake quantization by the compiled kernel
no quantizers      the same model with its quantizers taken out: no way of quantizing can be faster than that

Before anything is timed, the outputs of our model are compared with those that the same modules give by Brevitas' own
operations: the largest difference of a logit must be 0.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import qat_accuracy  # this file and the next lie beside this one
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.models import load_model
from compress_aug.native import kernels
from compress_aug.quantization import quantize, without_quantizers
from compress_aug.quantization.fused import quantization_executor
from compress_aug.study.results import cpu_name

BATCH = 128
CASES = tuple(f"{name} {kind}" for name in ("resnet20", "mobilenet_v2") for kind in ("fp32", "bf16"))


def batch() -> tuple[Tensor, Tensor]:
    """Random images and targets: speed does not depend on what is on them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((BATCH, 3, 32, 32), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(BATCH) % 10


def float_model(name: str, images: Tensor) -> nn.Module:
    """A model with batch-norm statistics of the images, as after training; the same at each call."""
    torch.manual_seed(0)
    model = load_model(name, classes=10, image_shape=(3, 32, 32)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            model(images)
    return model


def our_model(name: str, bits: int, images: Tensor) -> nn.Module:
    model = float_model(name, images)
    made = quantize(
        model,
        images[:1],
        weights=bits,
        activations=bits,
        first_and_last=bits,
        calibration=[images],
    )
    return made.to(memory_format=torch.channels_last).train()


def stock_model(model: nn.Module, bits: int, calibration: list[Tensor]) -> nn.Module:
    """What Brevitas makes of a float model, with the same bits everywhere and scales that are learned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own parts, while it is imported
        from brevitas import nn as brevitas_nn
        from brevitas import quant
        from brevitas.graph import quantize as stock
        from brevitas.graph.calibrate import calibration_mode

    weights = {
        "weight_quant": quant.Int8WeightPerChannelFloat,
        "weight_bit_width": bits,
        "bias_quant": None,
        "return_quant_tensor": True,
    }
    layers = {
        nn.Conv2d: (brevitas_nn.QuantConv2d, weights),
        nn.Linear: (brevitas_nn.QuantLinear, weights | {"return_quant_tensor": False}),
    }
    signed, unsigned = (
        {"act_quant": kind, "bit_width": bits, "return_quant_tensor": True}
        for kind in (quant.Int8ActPerTensorFloat, quant.Uint8ActPerTensorFloat)
    )
    model = stock.quantize(
        stock.preprocess_for_quantize(model.eval()),
        quant_identity_map={
            "signed": (brevitas_nn.QuantIdentity, signed),
            "unsigned": (brevitas_nn.QuantIdentity, unsigned),
        },
        compute_layer_map={**stock.COMPUTE_LAYER_MAP, **layers},
        quant_act_map={nn.ReLU: (brevitas_nn.QuantReLU, unsigned)},
    )
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad(), calibration_mode(model):
        for images in calibration:
            model(images)
    return model.train()


def training_step(model: nn.Module, kind: str, executor: str) -> Callable[[], object]:
    """One step on the batch, with the executor that carries out our fake quantization ("" for a model of others)."""
    images, targets = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        with quantization_executor(executor) if executor else nullcontext():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
                loss = functional.cross_entropy(model(images).float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step


def check_learned(model: nn.Module, step: Callable[[], object]) -> None:
    """Take a step, and exit unless every parameter got a gradient: a scale that is collected is none."""
    step()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if without:
        sys.exit(f"{len(without)} parameters are not learned, {without[0]} among them: nothing was timed.")


@torch.no_grad()
def largest_difference(model: nn.Module, kind: str, executor: str) -> float:
    """Of a logit, between an executor and Brevitas' own operations in the same modules."""
    images, _ = batch()
    logits = []
    model.eval()  # no dropout
    for name in ("stock", executor):
        with quantization_executor(name), torch.autocast("cpu", torch.bfloat16, kind == "bf16"):
            logits.append(model(images).float())
    model.train()
    return float((logits[0] - logits[1]).abs().max())


def race(sides: dict[str, Callable[[], object]], rounds: int, steps: int) -> dict[str, float]:
    """Median seconds of a step, by side. They take turns, so that whatever else the machine does meets them all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, step in sides.items():
            for _ in range(steps):
                started = time.perf_counter()
                step()
                if turn:  # the first turn warms up
                    times[name].append(time.perf_counter() - started)
    return {name: statistics.median(part) for name, part in times.items()}


def measure(case: str, bits: int, rounds: int, steps: int) -> list[dict]:
    name, kind = case.split()
    images, _ = batch()
    executors = ("torch", "compiled") if kernels() else ("torch",)
    ours, stock = our_model(name, bits, images), stock_model(float_model(name, images), bits, [images])
    differences = {executor: largest_difference(ours, kind, executor) for executor in executors}
    if any(differences.values()):
        sys.exit(
            f"{case}: our outputs are not those of the stock operations: {differences}; nothing was timed."
        )
    sides = {executor: training_step(ours, kind, executor) for executor in executors}
    plain = without_quantizers(ours).to(memory_format=torch.channels_last).train()
    sides |= {"no quantizers": training_step(plain, kind, ""), "stock": training_step(stock, kind, "")}
    for model, side in ((ours, executors[0]), (stock, "stock")):
        check_learned(model, sides[side])
    seconds = race(sides, rounds, steps)
    return [
        {
            "case": f"{case} w{bits}a{bits} B{BATCH}",
            "ours": f"{side} executor" if side in executors else side,
            "against": "stock Brevitas",
            "ratio": round(seconds["stock"] / seconds[side], 3),
            "ours_value": round(BATCH / seconds[side], 1),
            "against_value": round(BATCH / seconds["stock"], 1),
            "unit": "images/s",
            "largest_difference": differences.get(side),
        }
        for side in (*executors, "no quantizers")
    ]


def show(rows: list[dict]) -> None:
    table = Table(title="quantization-aware training step: ours against stock Brevitas")
    for column in ("case", "ours", "against"):
        table.add_column(column)
    for column in ("ours images/s", "its images/s", "ratio", "max difference"):
        table.add_column(column, justify="right")
    for row in rows:
        values = [f"{row[key]:,.0f}" for key in ("ours_value", "against_value")]
        difference = "" if row["largest_difference"] is None else f"{row['largest_difference']:g}"
        table.add_row(row["case"], row["ours"], row["against"], *values, f"{row['ratio']:.2f}", difference)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two on two cores")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--cases", default="", help="only cases with this in their name, such as bf16")
    parser.add_argument("--bits", type=int, default=8, choices=range(2, 9), metavar="2..8")
    parser.add_argument("--accuracy", action="store_true", help="train with both and compare accuracies")
    parser.add_argument(
        "--data", type=Path, help="for --accuracy: a folder of 32x32 images, such as CIFAR-10"
    )
    parser.add_argument("--images", type=int, default=10_000, help="for --accuracy: how many to train on")
    parser.add_argument("--epochs", type=int, default=3, help="for --accuracy: with quantizers")
    parser.add_argument("--seeds", type=int, default=3, help="for --accuracy: how many float starts")
    given = parser.parse_args()
    if given.accuracy != bool(given.data):
        sys.exit("--accuracy and --data belong together: give both, or neither for the speed.")
    if given.accuracy:
        qat_accuracy.compare(
            given.data, given.images, given.epochs, given.seeds, given.quick, given.json, stock_model
        )
        return
    cases = [case for case in CASES if given.cases in case]
    if not cases:
        sys.exit(f"No case has {given.cases!r} in its name: they are {', '.join(CASES)}.")
    effort = (3, 2) if given.quick else (9, 4)
    rows = [row for case in cases for row in measure(case, given.bits, *effort)]
    show(rows)
    if given.json:
        machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": "cpu"}
        if found := kernels():
            machine["instructions"] = found.level
        versions = {name: version(name) for name in ("torch", "brevitas")}
        report = {"benchmark": "qat", "machine": machine, "versions": versions, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
