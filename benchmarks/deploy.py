"""Files for a device: how fast ours are against other forms of the same net, how small, and how much is integer.

    python benchmarks/deploy.py [--quick] [--json FILE] [--cases WORD] [--old-python PATH] [--keep FOLDER]

A row compares a file of ours with another on one image and one thread, in ONNX Runtime. All files of a net take turns
in one process; each timed run follows an untimed one of the same file, and medians count. The other side is

float           the same net with its quantizers off
stock Brevitas  `brevitas.graph.quantize` and `export_onnx_qcdq`, with the same bits
ORT static      `onnxruntime.quantization.quantize_static`: QDQ, a scale per channel, the same images
own w8a8        our file of 8 bits, where a row is of fewer

Weights are random, batch norms and scales have seen random images: speed does not depend on them. Before anything is
timed each of our files is compared with its model, layer by layer in quantization steps, and every rewrite was exact
when it was written; files of others must give finite logits. Other rows tell how many layers are integer kernels and
how large files are. With `--old-python`, a Python that has onnxruntime 1.17 and numpy, the same files run there and
here in processes of their own, in turns, of whose medians the least counts.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch
from onnx import load as load_onnx
from qat import stock_model  # this file and the next lie beside this one
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from compress_aug import deploy, quantization
from compress_aug.folders import shipped
from compress_aug.models import load_model
from compress_aug.study.results import cpu_name

# Of a comparison by processes: how often each side starts, and how many runs it times then.
_STARTS = (2, 5)
_RUNS = 60


@dataclass(frozen=True)
class Net:
    """One network: how `load_model` calls it, and the size of its images."""

    title: str
    name: str
    pixels: int
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.pixels, self.pixels


NETS = (
    Net("ResNet20", "resnet20", 32, 10),
    Net("ResNet18", "torchvision:resnet18", 224, 1000),
    Net("MobileNetV2", "torchvision:mobilenet_v2", 224, 1000),
    Net("ShuffleNetV2", "torchvision:shufflenet_v2_x1_0", 224, 1000),
    Net("EfficientNet-B0", "torchvision:efficientnet_b0", 224, 1000),
)
# Form -> what `quantize` is told.
FORMS: dict[str, dict] = {
    "w8a8": {},
    "w4a4": {"weights": 4, "activations": 4},
    "w2a2": {"weights": 2, "activations": 2},
}
DOREFA: dict[str, dict] = {
    f"DoReFa w{bits}a{bits}": {
        "scheme": "dorefa",
        "weights": bits,
        "activations": bits,
        "first_and_last": 7,  # the most that DoReFa has
        "rescale": True,  # for the last layer, which no batch norm follows
    }
    for bits in (4, 2)
}
# Nets of which DoReFa files are made as well.
WITH_DOREFA = ("ResNet20", "ResNet18")
QUICK = ("ResNet20", "ShuffleNetV2")


def random_images(net: Net, number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, *net.image_shape, generator=torch.Generator().manual_seed(seed))


def float_model(net: Net) -> nn.Module:
    """A model with batch-norm statistics of images, as after training; the same at each call."""
    torch.manual_seed(0)
    model = load_model(net.name, classes=net.classes, image_shape=net.image_shape)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of what it saw
    with torch.no_grad():
        for seed in range(2):
            model(random_images(net, 8, seed))
    return model.eval()


@dataclass(frozen=True)
class File:
    """A file that may be timed.

    integer, all_layers: how many layers run on integers, and how many there are
    difference:          the largest one of a logit from the model, as a share of the logits' range; None if the file
                         is of others
    """

    path: Path
    integer: int = 0
    all_layers: int = 0
    difference: float | None = None
    stayed: tuple[tuple[str, str, str], ...] = ()


def our_file(net: Net, form: str, options: dict, folder: Path, calibration: list[Tensor]) -> File:
    """Quantize, write with its rewrites proven, and compare with the model; exits if they differ."""
    made = quantization.quantize(
        float_model(net), random_images(net, 1), calibration=calibration, **options
    ).eval()
    final = quantization.finalize(made).eval()
    path = folder / f"{net.title} {form}.onnx"
    written = deploy.write(final, path, image_shape=net.image_shape)
    if moved := [rewrite.name for rewrite in written.rewrites if rewrite.max_abs_diff]:
        sys.exit(f"{net.title} {form}: {moved[0]} moved numbers; nothing was timed.")
    images = random_images(net, 4, seed=7)
    parity = deploy.check_parity(final, path, [(images, torch.zeros(len(images), dtype=torch.int64))])
    if parity.wrong is not None or not np.isfinite(parity.max_abs_diff):
        sys.exit(
            f"{net.title} {form}: the file is not its model, first in {parity.wrong}; nothing was timed."
        )
    with torch.no_grad():
        logits = final(images)
    audit = deploy.audit(path)
    return File(
        path,
        audit.integer_layers,
        audit.integer_layers + audit.float_layers,
        parity.max_abs_diff / float(logits.max() - logits.min()),
        audit.stayed_float,
    )


def stock_file(net: Net, form: str, folder: Path, calibration: list[Tensor]) -> File:
    """What Brevitas writes of a model that it quantized itself."""
    from brevitas.export import export_onnx_qcdq

    path = folder / f"{net.title} {form} stock.onnx"
    bits = FORMS[form].get("weights", 8)
    model = stock_model(float_model(net), bits, calibration).eval().to(memory_format=torch.contiguous_format)
    export_onnx_qcdq(
        model,
        args=random_images(net, 1),
        export_path=str(path),
        opset_version=13,
        dynamo=False,
        keep_initializers_as_inputs=False,
    )
    return File(path)


class _Images:
    """Calibration images as `quantize_static` wants to read them."""

    def __init__(self, images: Tensor) -> None:
        self._left = [{"input": image[None].numpy()} for image in images]

    def get_next(self) -> dict | None:
        return self._left.pop() if self._left else None


def static_file(net: Net, float_path: Path, folder: Path, images: Tensor) -> File:
    """What ONNX Runtime makes of the float file, with all that it advises to do before."""
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    prepared, path = folder / f"{net.title} prepared.onnx", folder / f"{net.title} static.onnx"
    quant_pre_process(str(float_path), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        _Images(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return File(path)


def attempted(what: str, make: Callable[[], File]) -> File | None:
    """What another tool makes; None, and a line that says so, where it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    # Whatever it raises: it is not ours.
    except Exception as error:
        print(
            f"{what} is left out: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            file=sys.stderr,
        )
        return None


def files_of(net: Net, forms: list[str], folder: Path, quick: bool) -> dict[str, File]:
    """Every file of a net, checked."""
    images = random_images(net, 4 if quick else 8)
    calibration = [images]
    path = folder / f"{net.title} float.onnx"
    deploy.write(float_model(net), path, image_shape=net.image_shape)
    found: dict[str, File | None] = {"float": File(path)}
    for form in forms:
        found[form] = our_file(net, form, FORMS.get(form) or DOREFA.get(form, {}), folder, calibration)
        if form in FORMS and form != "w8a8":
            what = f"stock Brevitas of {net.title} {form}"
            found[f"stock {form}"] = attempted(
                what, lambda form=form: stock_file(net, form, folder, calibration)
            )
        gc.collect()
    found["static"] = attempted(f"ORT static of {net.title}", lambda: static_file(net, path, folder, images))
    return {name: file for name, file in found.items() if file is not None}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def race(net: Net, files: dict[str, File], rounds: int) -> dict[str, float]:
    """Median milliseconds of a run, by name. They take turns, so that whatever else runs meets them all."""
    sessions = {name: session(file.path) for name, file in files.items()}
    image = random_images(net, 1, seed=5).numpy()
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for name, one in sessions.items():
        if not np.isfinite(one.run(None, {one.get_inputs()[0].name: image})[0]).all():
            sys.exit(f"{net.title} {name}: the file gives numbers that are none; nothing was timed.")
    for turn in range(rounds + 3):
        for name, one in sessions.items():
            given = {one.get_inputs()[0].name: image}
            one.run(None, given)
            started = time.perf_counter()
            one.run(None, given)
            if turn >= 3:  # the first turns warm up
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(part) for name, part in times.items()}


def row(case: str, ours: str, against: str, values: tuple[float, float], unit: str) -> dict:
    """ratio: how much less of the unit ours takes, whatever the unit."""
    own, other = values
    return {
        "case": case,
        "ours": ours,
        "against": against,
        "ratio": round(other / own, 3),
        "ours_value": round(own, 4),
        "against_value": round(other, 4),
        "unit": unit,
    }


def speed_rows(net: Net, files: dict[str, File], rounds: int) -> Iterator[dict]:
    times = race(net, files, rounds)
    for form, file in files.items():
        if file.difference is None:
            continue
        for against, other in (
            ("float", "float"),
            ("stock Brevitas", f"stock {form}"),
            ("ORT static", "static" if form == "w8a8" else ""),
            ("own w8a8", "w8a8" if form != "w8a8" else ""),
        ):
            if other in times:
                found = row(
                    f"{net.title} {net.pixels}x{net.pixels}", form, against, (times[form], times[other]), "ms"
                )
                yield found | {"difference": file.difference}


def weights_as_stored(path: Path) -> int:
    """Bytes of packed and of 8-bit weights in a file."""
    return sum(
        len(tensor.raw_data)
        for tensor in load_onnx(str(path)).graph.initializer
        if tensor.data_type in (2, 3)
    )


def size_rows(net: Net, files: dict[str, File]) -> Iterator[dict]:
    float_bytes = files["float"].path.stat().st_size
    for form, file in files.items():
        if file.difference is None:
            continue
        size = file.path.stat().st_size
        case = f"{net.title} file"
        yield row(case, form, "float", (size, float_bytes), "bytes") | {"share": size / float_bytes}
        if net.title == "ResNet20":
            rest = size - weights_as_stored(file.path)
            yield row(f"{case} beyond weights", form, "goal of 60 kB", (rest, 60_000), "bytes")


def integer_rows(net: Net, files: dict[str, File]) -> Iterator[dict]:
    for form, file in files.items():
        if file.difference is None:
            continue
        found = row(
            f"{net.title} integer layers", form, "all layers", (file.all_layers, file.integer), "layers"
        )
        yield found | {
            "ours_value": file.integer,
            "against_value": file.all_layers,
            "stayed_float": [list(one) for one in file.stayed],
        }


def old_rows(net: Net, files: dict[str, File], old_python: Path, quick: bool) -> Iterator[dict]:
    """The same file on this ONNX Runtime and on another one, in processes that take turns."""
    for form, file in files.items():
        if file.difference is None:
            continue
        times: dict[Path, list[float]] = {Path(sys.executable): [], old_python: []}
        for _ in range(_STARTS[0 if quick else 1]):
            for python, found in times.items():
                found.append(timed_by(python, file.path))
        # Of the medians of each start the least: processes do not meet the same load, as turns in one do.
        here, there = (min(part) for part in times.values())
        name = f"{net.title} on ORT {runtime_of(old_python)}"
        yield row(name, form, f"ORT {version('onnxruntime')}", (there, here), "ms")


def timed_by(python: Path, path: Path) -> float:
    """Median milliseconds in a process of that Python, as on a device."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "bench.json"
        command = [str(python), str(shipped("export") / "bench.py"), str(path), "--json", str(report)]
        done = subprocess.run(
            [*command, "--repeats", str(_RUNS)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{python} cannot run {path.name}: {done.stderr.strip().splitlines()[-1:]}")
        return float(json.loads(report.read_text())["p50_ms"])


def runtime_of(python: Path) -> str:
    asked = [str(python), "-c", "import onnxruntime; print(onnxruntime.__version__)"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def measure(net: Net, quick: bool, rounds: int, old_python: Path | None, keep: Path | None) -> Iterator[dict]:
    forms = [*FORMS, *(DOREFA if net.title in WITH_DOREFA else ())]
    if quick:
        forms = forms[:3] if net.title == "ResNet20" else forms[:1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = files_of(net, forms, folder, quick)
        # A net whose run takes less than a millisecond needs more of them for a median that stands.
        yield from speed_rows(net, files, rounds if net.pixels > 64 else 8 * rounds)
        if net.title.startswith("ResNet"):
            yield from size_rows(net, files)
        yield from integer_rows(net, files)
        if old_python is not None:
            yield from old_rows(net, files, old_python, quick)


def show(rows: list[dict]) -> None:
    table = Table(title="files for a device: ours against others, one thread")
    for column in ("case", "ours", "against"):
        table.add_column(column)
    for column in ("ours", "theirs", "unit", "ratio"):
        table.add_column(column, justify="right")
    for one in rows:
        values = [
            f"{one[key]:,.2f}" if one["unit"] == "ms" else f"{one[key]:,.0f}"
            for key in ("ours_value", "against_value")
        ]
        table.add_row(one["case"], one["ours"], one["against"], *values, one["unit"], f"{one['ratio']:.2f}")
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two nets, few forms, few rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--cases", default="", help="only nets with this in their name, such as ResNet")
    parser.add_argument(
        "--old-python", type=Path, help="a Python with onnxruntime 1.17, to run the same files in"
    )
    parser.add_argument("--keep", type=Path, help="a folder in which the files stay")
    given = parser.parse_args()
    nets = [net for net in NETS if given.cases.lower() in net.title.lower()]
    nets = [net for net in nets if not given.quick or given.cases or net.title in QUICK]
    if not nets:
        sys.exit(f"No net has {given.cases!r} in its name: they are {', '.join(net.title for net in NETS)}.")
    torch.set_num_threads(1)
    rounds = 30 if given.quick else 150
    rows = [one for net in nets for one in measure(net, given.quick, rounds, given.old_python, given.keep)]
    show(rows)
    if given.json:
        machine = {"cpu": cpu_name(), "threads": 1, "system": platform.system()}
        versions = {name: version(name) for name in ("torch", "brevitas", "onnx", "onnxruntime")}
        report = {"benchmark": "deploy", "machine": machine, "versions": versions, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
