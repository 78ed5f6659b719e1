"""Accuracy and latency after pruning: ours against plain torch-pruning and plain torch.nn.utils.prune.

    python benchmarks/pruning.py --data path/to/cifar10 [--quick] [--json FILE]

The data is one folder a class, under train/ and test/. For each seed a net is trained once, and both sides go on from
the same weights, with the same epochs and learning rates:

channels   cut to at most half the multiply-accumulates, then trained at the same constant magnitude. Against
           `torch-pruning`: its own pruner with group magnitude importance, its ratio found by bisection, channel
           counts rounded to the same multiple, the classifier left whole. Ours is cut to what theirs has reached.
latency    of the two cut nets as exported files, one thread, in turns in a fresh process
masks      60 and 80 % zeros. Ours: two rounds, the magnitude falls as zeros grow (14, then 8 and 4). Against
           `torch.nn.utils.prune`: global_unstructured with L1Unstructured once, then the same number of epochs at 14

`ratio` is ours / theirs for accuracies and theirs / ours for latencies: above 1 ours is better. The spread over the
seeds is printed beside it; without a GPU and in minutes these are small trainings, so look at the spread.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch_pruning as tp
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils import prune

from compress_aug import (
    Data,
    RandAugment,
    Settings,
    Training,
    copy_model,
    cut_channels,
    latency,
    load_data,
    load_model,
    make_permanent,
    mask_smallest,
    measure,
    write,
)
from compress_aug.study.results import cpu_name

CLASSIFIERS = {"resnet20": "fc", "mobilenet_v2": "classifier.1"}
ROUND_TO, STRONG = 8, 14


def trained(model: nn.Module, data: Data, epochs: int, lr: float, seed: int, magnitude: int) -> nn.Module:
    """The model after a training with crop, flip and a constant magnitude."""
    augment = RandAugment(crop_padding=data.crop_padding, flip=data.flip)
    settings = Settings(epochs=epochs, batch_size=128, lr=lr, weight_decay=5e-4)
    training = Training(
        model, data, settings=settings, augment=augment, magnitude=lambda progress: magnitude, seed=seed
    )
    while training.epochs_done < epochs:
        training.epoch()
    return training.finished_model()


def accuracy(model: nn.Module, data: Data) -> float:
    return measure.accuracy(model, data.test.batches(500), data.normalise)


def plain_cut(model: nn.Module, share: float, classifier: str) -> nn.Module:
    """torch-pruning alone: the smallest ratio of its pruner that meets the share of multiply-accumulates."""
    whole = measure.macs(model, (3, 32, 32))
    example = torch.randn(1, 3, 32, 32)

    def cut(ratio: float) -> nn.Module:
        smaller = copy_model(model)
        pruner = tp.pruner.BasePruner(
            smaller,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=[smaller.get_submodule(classifier)],
            round_to=ROUND_TO,
        )
        pruner.step()
        return smaller

    low, high = 0.0, 0.9
    while high - low > 1 / 128:
        middle = (low + high) / 2
        low, high = (
            (low, middle) if measure.macs(cut(middle), (3, 32, 32)) <= share * whole else (middle, high)
        )
    return cut(high)


def plain_masks(model: nn.Module, sparsity: float) -> nn.Module:
    """torch.nn.utils.prune alone, all layers ranked together."""
    layers = [(layer, "weight") for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
    return model


def channels(
    dense: nn.Module, name: str, data: Data, epochs: int, seed: int, folder: Path
) -> dict[str, tuple]:
    """(ours, theirs) of accuracy and latency, and of the share of multiply-accumulates that is left."""
    whole = measure.macs(dense, (3, 32, 32))
    theirs = plain_cut(dense, 0.5, CLASSIFIERS[name])
    budget = {"macs": measure.macs(theirs, (3, 32, 32)) / whole}
    ours = cut_channels(copy_model(dense), torch.zeros(1, 3, 32, 32), until=budget, round_to=ROUND_TO)
    nets = [ours, theirs]
    shares = tuple(measure.macs(net, (3, 32, 32)) / whole for net in nets)
    nets = [trained(net, data, epochs, 0.05, seed, 8) for net in nets]
    files = [folder / f"{name}-{side}.onnx" for side in ("ours", "plain")]
    for net, file in zip(nets, files, strict=True):
        write(net.eval(), file, image_shape=(3, 32, 32))
    times = latency(files[0], against=files[1])
    return {
        "accuracy": tuple(accuracy(net, data) for net in nets),
        "latency": (times.p50_ms, times.against_p50_ms),
        "MACs left": shares,
    }


def masks(dense: nn.Module, data: Data, epochs: int, seed: int, sparsity: float) -> tuple[float, float]:
    """(ours, theirs): accuracy at this sparsity after the same number of epochs."""
    ours = copy_model(dense)
    for place, magnitude in ((sparsity / 2, 8), (sparsity, 4)):
        ours = trained(mask_smallest(ours, place), data, epochs // 2, 0.05, seed, magnitude)
    theirs = trained(plain_masks(copy_model(dense), sparsity), data, epochs // 2 * 2, 0.05, seed, STRONG)
    assert abs(measure.sparsity(make_permanent(ours)) - measure.sparsity(theirs)) < 1e-4
    return accuracy(ours, data), accuracy(theirs, data)


def row(case: str, ours: str, against: str, pairs: list[tuple], unit: str) -> dict:
    """The mean over the seeds; theirs / ours where less is better."""
    means = [statistics.mean(pair[side] for pair in pairs) for side in (0, 1)]
    ratios = [b / a if unit == "ms" else a / b for a, b in pairs]
    return {
        "case": case,
        "ours": ours,
        "against": against,
        "ratio": round(statistics.mean(ratios), 4),
        "ours_value": round(means[0], 4),
        "against_value": round(means[1], 4),
        "unit": unit,
        "spread": round(statistics.stdev(ratios), 4) if len(ratios) > 1 else None,
        "seeds": len(pairs),
    }


def measured(
    name: str, data: Data, epochs: tuple[int, int], seeds: range, say: Callable[[str], None]
) -> list[dict]:
    first, later = epochs
    cut: list[dict] = []
    zeros: dict[float, list] = {0.6: [], 0.8: []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            torch.manual_seed(seed)
            model = load_model(name, classes=len(data.classes), image_shape=data.image_shape)
            dense = trained(model, data, first, 0.1, seed, STRONG)
            say(f"{name}, seed {seed}: dense {accuracy(dense, data):.2%}")
            cut.append(channels(dense, name, data, later, seed, Path(folder)))
            say(f"{name}, seed {seed}: channels {cut[-1]}")
            if name == "resnet20":
                for sparsity, pairs in zeros.items():
                    pairs.append(masks(dense, data, later, seed, sparsity))
                    say(f"{name}, seed {seed}: {sparsity:.0%} zeros {pairs[-1]}")
    shares = [statistics.mean(found["MACs left"][side] for found in cut) for side in (0, 1)]
    rows = [
        row(f"{name} channels", "cut_channels", "torch-pruning", [found[what] for found in cut], unit)
        | {"macs_left": [round(share, 4) for share in shares]}
        for what, unit in (("accuracy", "accuracy"), ("latency", "ms"))
    ]
    rows += [
        row(
            f"{name} {sparsity:.0%} zeros",
            "decayed magnitude",
            "utils.prune, M=14",
            pairs,
            "accuracy",
        )
        for sparsity, pairs in zeros.items()
        if pairs
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of 32x32 images, such as CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="one seed, few images: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    images, epochs, seeds = (400, (1, 2), range(1)) if given.quick else (3000, (6, 4), range(3))
    data = load_data({"folder": str(given.data), "train": images, "test": 1000 if given.quick else 5000})
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = [
        found
        for name in CLASSIFIERS
        for found in measured(name, data, epochs, seeds, lambda line: console.print(line, highlight=False))
    ]
    table = Table(
        title=f"pruning: {images} training images, {epochs[0]} + {epochs[1]} epochs, {len(seeds)} seeds"
    )
    for column in ("case", "ours", "against", "ours", "theirs", "unit", "ratio", "spread", "MACs left"):
        table.add_column(column)
    for found in rows:
        values = [f"{found[key]:.4g}" for key in ("ours_value", "against_value")]
        spread = "" if found["spread"] is None else f"{found['spread']:.3f}"
        table.add_row(
            found["case"],
            found["ours"],
            found["against"],
            *values,
            found["unit"],
            f"{found['ratio']:.3f}",
            spread,
            " / ".join(f"{share:.3f}" for share in found.get("macs_left", [])),
        )
    console.print(table)
    if given.json:
        versions = {"torch": torch.__version__, "torch-pruning": tp.__version__}
        machine = {"cpu": cpu_name(), "threads": torch.get_num_threads()}
        report = {"benchmark": "pruning", "machine": machine, "versions": versions, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
