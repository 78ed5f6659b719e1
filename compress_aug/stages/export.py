"""export: the model as an ONNX file, proven equal on real images, audited, and timed in a fresh process."""

import gzip
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from compress_aug.errors import ParityError, RecipeError
from compress_aug.stages.base import Outlook, Part, Setup, Stage, State

if TYPE_CHECKING:
    from torch import nn


class Limits(Part):
    """What the file must keep to. A miss fails the run after everything is written."""

    latency_ms: float | None = Field(None, gt=0, description="median, one image, on the target's runtime")
    size_mb: float | None = Field(None, gt=0, description="the file, in 10^6 bytes")
    memory_mb: float | None = Field(
        None,
        gt=0,
        description="the most that a process holds which runs the file, Python included, 10^6 bytes",
    )
    accuracy: float | None = Field(None, ge=0, le=1, description="of the file on the test split, at least")

    def misses(self, row: dict[str, Any]) -> list[str]:
        """One sentence for each limit that the exported file misses."""
        latency, size = row["latency_ms"]["p50"], row["bytes"] / 1e6
        proxy = f" (measured on this host, a proxy for {row['target']})" if row["proxy"] else ""
        found = []
        if self.latency_ms is not None and latency > self.latency_ms:
            found.append(f"latency_ms is {latency:.3g}, at most {self.latency_ms:g} is allowed{proxy}")
        if self.size_mb is not None and size > self.size_mb:
            found.append(f"size_mb is {size:.3g}, at most {self.size_mb:g} is allowed")
        if self.memory_mb is not None:
            memory = row["memory_mb"]
            if memory is None:
                found.append("memory_mb is not known: this system does not tell what a process holds")
            elif memory > self.memory_mb:
                found.append(f"memory_mb is {memory:.4g}, at most {self.memory_mb:g} is allowed{proxy}")
        if self.accuracy is not None and row["accuracy"] < self.accuracy:
            found.append(f"accuracy is {row['accuracy']:.4f}, at least {self.accuracy:g} is wanted")
        return found


class Export(Stage):
    """Write the ONNX file, prove it, audit it and time it against the same net in float."""

    word: ClassVar[str] = "export"

    file: str = Field("model.onnx", description="name within the run's folder")
    budget: Limits = Limits()
    kit: bool = Field(False, description="also make a folder for the device, named after the file: model.kit")

    @field_validator("file")
    @classmethod
    def _inside(cls, given: str) -> str:
        path = PurePosixPath(given.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in given or not given.strip():
            raise ValueError(f'file: expected a name within the run\'s folder, found "{given}"')
        if path.suffix != ".onnx":
            raise ValueError(f'file: expected a name that ends in .onnx, found "{given}"')
        if not re.fullmatch(r"[\w .+/-]{1,200}", given):
            raise ValueError(
                f'file: expected at most 200 letters, digits, spaces and "._+-/", found "{given}"'
            )
        return str(path)

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.attached:
            raise RecipeError(
                "export: additional layers are still attached; a drop stage must come before it"
            )
        mine = _names(self.file)
        if taken := [name for name in mine if name in (*outlook.files, "original.onnx")]:
            raise RecipeError(f'file: "{taken[0]}" is written already by this run; choose another name')
        return replace(outlook, files=(*outlook.files, *mine))

    def title(self) -> str:
        return f"export {self.file}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug import quantization

        model = quantization.finalize(state.model) if quantization.is_quantized(state.model) else state.model
        row = export_model(model, setup, setup.folder / self.file)
        if self.kit:
            kit = PurePosixPath(self.file).with_suffix(".kit")
            write_kit_of(row, setup, setup.folder / kit)
            row["kit"] = str(kit)
        row["misses"] = self.budget.misses(row)
        # A miss fails the run, but only after everything is written: the walk raises at its end.
        setup.record("export", row)
        # The model that goes on, and that `load` gives back, is the one that the file was proven equal to.
        return replace(state, model=model)


def _names(file: str) -> list[str]:
    """The files that an export writes: itself, before it is proven, and its float twin."""
    path = PurePosixPath(file)
    return [str(path), *(str(path.with_suffix(f".{kind}.onnx")) for kind in ("unproven", "float"))]


def export_model(model: "nn.Module", setup: Setup, path: Path) -> dict[str, Any]:
    """Write, prove, audit and time a (finalized) model; returns the row of report.json's `exports`.

    The file gets its name only once parity holds: before, and if it does not, it is called *.unproven.onnx.

    Raises ExportError if it cannot be written or run, ParityError if it does not compute what the model does.
    """
    from compress_aug import deploy, quantization
    from compress_aug.surgery import copy_model

    quantized = quantization.is_quantized(model)
    final = copy_model(model).cpu().eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    unproven = path.with_suffix(".unproven.onnx")
    target = setup.target
    write = partial(
        deploy.write,
        image_shape=setup.data.image_shape,
        metadata=setup.metadata,
        form=target.form,
        opset=target.opset,
    )
    written = write(final, unproven, images=next(iter(_test_batches(setup)))[0])
    for line in written.notes:
        setup.note(line)
    if target.runtime != "onnxruntime":
        setup.note(
            f"classes, accuracy and latency are those that {target.runtime} gives; it does not show what lies between "
            "its layers, which are compared as the file is written, in ONNX Runtime with its optimizations off"
        )
    parity = deploy.check_parity(final, unproven, _test_batches(setup), runtime=target.runtime)
    if not setup.rehearsal:
        try:
            deploy.require(parity)
        except ParityError as error:
            error.args = (
                f"{error} The file is kept as {unproven.name}; more bits for that layer, float for both of its sides "
                "(`overrides` of `quantize`) or a training behind `quantize` may help.",
            )
            raise
    unproven.replace(path)
    float_path = path
    if quantized:
        float_path = path.with_suffix(".float.onnx")
        write(quantization.without_quantizers(final), float_path)
    audit = deploy.audit(path, runtime=target.runtime)
    times = deploy.latency(
        path,
        threads=setup.target.threads,
        repeats=5 if setup.rehearsal else 200,
        against=float_path if quantized else None,
        runtime=target.runtime,
    )
    return {
        "file": str(path.relative_to(setup.folder)),
        "float_file": str(float_path.relative_to(setup.folder)),
        "target": setup.target.name,
        "proxy": setup.target.proxy,
        "threads": setup.target.threads,
        "bytes": path.stat().st_size,
        "gzip_bytes": len(gzip.compress(path.read_bytes())),
        "float_bytes": float_path.stat().st_size,
        "accuracy": parity.accuracy,
        "model_accuracy": parity.model_accuracy,
        "max_abs_diff": parity.max_abs_diff,
        "top1_agreement": parity.top1_agreement,
        "images": parity.images,
        "disagreements": parity.disagreements,
        "rewrites": [asdict(rewrite) for rewrite in written.rewrites],
        "layers": [_finite(asdict(layer)) for layer in parity.layers],
        # Not a note of the stage: it depends on the processor, and notes are the same in every run.
        "diverging": None if parity.diverging is None else parity.diverging.layer,
        "integer_layers": audit.integer_layers,
        "float_layers": audit.float_layers,
        # Of a float model all layers are float, which is no news.
        "stayed_float": [list(layer) for layer in audit.stayed_float] if quantized else [],
        "latency_ms": {"p50": times.p50_ms, "p95": times.p95_ms},
        "float_latency_ms": {
            "p50": times.against_p50_ms if quantized else times.p50_ms,
            "p95": times.against_p95_ms if quantized else times.p95_ms,
        },
        "memory_mb": times.memory_mb,
        "float_memory_mb": times.against_memory_mb if quantized else times.memory_mb,
        # Not a note of the stage: it depends on what else the machine does, and notes are the same in every run.
        "slower": times.note,
        "runtime": times.runtime,
        "cpu": times.cpu,
        "isa": None if times.isa is None else list(times.isa),
    }


def write_kit_of(row: dict[str, Any], setup: Setup, folder: Path) -> None:
    """Make a folder for the device of an exported file, with the same net in float if there is one."""
    from compress_aug import deploy

    path, float_path = (setup.folder / row[key] for key in ("file", "float_file"))
    other = None if float_path == path else float_path
    deploy.write_kit(path, folder, target=setup.target, float_path=other)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    # JSON has no infinity.
    return {key: None if value == float("inf") else value for key, value in row.items()}


def _test_batches(setup: Setup) -> Any:
    data = setup.data
    return ((data.normalise(b.images).cpu(), b.targets.cpu()) for b in data.test.batches(500))
