"""The one call into torch's and Brevitas' ONNX exporters, with the layer named when they fail."""

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress_aug.errors import ExportError
from compress_aug.surgery import copy_model, without_fast_attention

# The newest operator set that the exporter below knows how to write.
LAST_OPSET = 20

# Where installed packages lie.
_INSTALLED = {"site-packages", "dist-packages"}

# How the exporter's printed graphs begin.
_GRAPH_DUMP = "Torch IR graph at exception"


def export_graph(
    model: nn.Module, example: Tensor, opset: int
) -> tuple[onnx.ModelProto, int, tuple[str, ...]]:
    """Trace the model into an ONNX graph with input `input`, output `logits` and any number of images.

    example: float input (N, C, H, W)
    opset:   of the ONNX operators; a later one is taken where an operator needs it

    Returns the graph, the operator set used, and notes: why it is another than the one asked for, and where the
    model's own code branches on a value, of which the file keeps the way that the example takes.

    torch's newer exporter (`dynamo=True`) leaves the quantization of Brevitas weights to the device and runs
    several times slower there, so both kinds of model go through the older one.

    Raises ExportError, with the layer and the operator where they are known.
    """
    asked, reason = opset, ""
    while True:
        # A copy for each attempt: one that fails leaves Brevitas layers half way into their export mode.
        attempt = copy_model(model)
        watch = _Watch(attempt)
        with _captured_stdout() as printed, watch:
            try:
                graph, branches = _export(attempt, example, opset)
                return graph, opset, (*((reason,) if reason else ()), *branches)
            # Not narrower: tracing runs the model's own forward, which may raise anything.
            except Exception as error:
                failure = error
        operator, later = _unsupported(failure)
        layer = _traced_layer(printed(), operator) or watch.layer
        if later is None or not opset < later <= LAST_OPSET:
            raise ExportError(_sentence(failure, operator, layer)) from failure
        place = f' in layer "{layer}"' if layer else ""
        reason = f"the ONNX operators are of version {later}, not {asked}: {operator}{place} needs it"
        opset = later


def is_brevitas(model: nn.Module) -> bool:
    """Whether the model holds Brevitas layers."""
    # Brevitas takes seconds to import, and a model with its layers has imported it already.
    if "brevitas" not in sys.modules:
        return False
    from brevitas.nn.mixin.base import QuantLayerMixin  # type: ignore[import-untyped]

    return any(isinstance(module, QuantLayerMixin) for module in model.modules())


def _exporter_of(model: nn.Module) -> Callable[..., Any]:
    if not is_brevitas(model):
        return torch.onnx.export
    with warnings.catch_warnings():
        # Brevitas warns about its own modules and about a package that only large language models want.
        warnings.filterwarnings(
            "ignore", "brevitas.fx is deprecated|fast_hadamard_transform package not found"
        )
        from brevitas.export import export_onnx_qcdq  # type: ignore[import-untyped]

    written: Callable[..., Any] = export_onnx_qcdq
    return written


def _export(model: nn.Module, example: Tensor, opset: int) -> tuple[onnx.ModelProto, list[str]]:
    write = _exporter_of(model)
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as warned,
        without_fast_attention(),
        torch.no_grad(),
    ):
        # The exporter warns that it is the older one, and of every Python number that tracing makes constant.
        warnings.simplefilter("always")
        path = Path(folder) / "model.onnx"
        write(
            model,
            (example,),
            str(path),
            dynamo=False,
            opset_version=opset,
            # A constant that is an input as well could not be folded by the runtime.
            keep_initializers_as_inputs=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
        return onnx.load(str(path)), _branches(warned)


def _branches(warned: list[warnings.WarningMessage]) -> list[str]:
    """One sentence for each line of the user's own code that decides by a value; libraries check shapes that way."""
    places = [
        f"{Path(one.filename).name}, line {one.lineno}"
        for one in warned
        if "to a Python boolean" in str(one.message) and not _INSTALLED.intersection(Path(one.filename).parts)
    ]
    return [
        f"{place} branches on a value or a shape: the file always goes the way that one example goes"
        for place in dict.fromkeys(places)
    ]


class _Watch:
    """Notes the innermost layer that runs, so that a failure in the middle of it can name it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._inside: list[str] = []
        self._hooks: list[Any] = []

    @property
    def layer(self) -> str:
        """The layer that was entered and never left, "" if there is none or it is the whole model."""
        return self._inside[-1] if self._inside else ""

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter, name)))
            self._hooks.append(module.register_forward_hook(self._leave))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, name: str, *_: object) -> None:
        self._inside.append(name)

    def _leave(self, *_: object) -> None:
        self._inside.pop()


def _unsupported(failure: Exception) -> tuple[str, int | None]:
    """The operator that could not be written and the operator set that has it; "" and None if unknown."""
    operator = re.search(r"operator '([\w:]+)'", str(failure))
    later = re.search(r"added in version (\d+)", str(failure))
    if not isinstance(failure, torch.onnx.errors.UnsupportedOperatorError) or operator is None:
        return "", None
    return operator[1].removeprefix("aten::"), int(later[1]) if later else None


def _traced_layer(printed: str, operator: str) -> str:
    """The layer in which the exporter's printed trace calls an operator, "" if it does not say."""
    if not operator:
        return ""
    calls = re.findall(rf" = aten::{re.escape(operator)}\(.*scope: (\S+)", printed)
    # A scope is a path of Class::name. The parts of a Sequential repeat its name: inner, inner.1.
    names: list[str] = []
    for part in calls[-1].split("/") if calls else []:
        name = part.rpartition("::")[2]
        if names and name.startswith(f"{names[-1]}."):
            names.pop()
        names += [name] if name else []
    return ".".join(names)


def _sentence(failure: Exception, operator: str, layer: str) -> str:
    place = f' in layer "{layer}"' if layer else ""
    if operator:
        return f"ONNX has no operator for {operator}{place}: replace it by operations that ONNX knows."
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    reason = lines[0].rstrip(".") if lines else type(failure).__name__
    return f"The model cannot be written as ONNX: tracing it failed{place} with: {reason}."


@contextmanager
def _captured_stdout() -> Iterator[Callable[[], str]]:
    """Keep what is written to standard output while the block runs, and give it as text afterwards.

    The exporter's compiled part prints whole graphs there when it fails, past Python's `sys.stdout`. Anything
    else, such as a model that prints, appears once the block has ended.
    """
    printed: list[str] = []
    with tempfile.TemporaryFile() as kept:
        _flush()
        before = os.dup(1)
        os.dup2(kept.fileno(), 1)
        try:
            yield lambda: printed[0]
        finally:
            _flush()
            os.dup2(before, 1)
            os.close(before)
            kept.seek(0)
            written = kept.read()
            printed.append(written.decode(errors="replace"))
            if _GRAPH_DUMP not in printed[0]:
                os.write(1, written)


def _flush() -> None:
    # There is none in a program without a console.
    if sys.stdout is not None:
        sys.stdout.flush()
