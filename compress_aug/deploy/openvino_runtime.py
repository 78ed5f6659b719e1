"""A file opened in OpenVINO on the CPU, and what that makes of its layers."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from compress_aug.deploy.graph import Array
from compress_aug.errors import ExportError
from compress_aug.targets import require_runtime

_INTEGERS = ("u8", "i8")


class OpenVinoSession:
    """A file that is ready to run, as `runtime.Session` is one for ONNX Runtime.

    threads: that one layer may use

    It is compiled for the shape of its inputs, anew when that changes: with an open batch OpenVINO takes other
    kernels, whose roundings are not the model's. What is not on integers it computes in float32, and not in
    bfloat16, which it would take by itself where the processor has it.

    Raises MissingPart without OpenVINO, ExportError if the file is missing or OpenVINO cannot read it.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        require_runtime("openvino")
        if not path.is_file():
            raise ExportError(f"There is no file {path}.")
        self._path, self._threads = path, threads
        self._core = importlib.import_module("openvino").Core()
        self._shape: tuple[int, ...] | None = None
        self._request: Any = None
        self._read()

    def run(self, inputs: Array) -> Array:
        """Logits float32 (N, K) of float32 inputs (N, C, H, W). Raises ExportError if OpenVINO refuses them."""
        try:
            if inputs.shape != self._shape:
                self._request = self._compiled(inputs.shape).create_infer_request()
                self._shape = inputs.shape
            # A copy: the request writes its next output into the same memory.
            return np.array(self._request.infer({0: inputs})[0])
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot run {self._path} on inputs of shape {inputs.shape}: {_reason(error)}."
            ) from error

    def layers(self) -> dict[str, tuple[str, str | None]]:
        """What each node of the file became: name -> OpenVINO's type of layer, and the first of its inputs' types
        that is no 8-bit integer (None if all that it computes on are integers). For one image.
        """
        model = self._read()
        shape = [size.get_length() if size.is_static else 1 for size in model.inputs[0].partial_shape]
        found: dict[str, tuple[str, str | None]] = {}
        for layer in self._compiled((1, *shape[1:])).get_runtime_model().get_ordered_ops():
            told = layer.get_rt_info()
            kind = str(told["layerType"].astype(str))
            # Behind data and weight come biases; sums have two inputs of data.
            types = [value.get_element_type().get_type_name() for value in layer.inputs()][:2]
            floats = [kind for kind in types if kind not in _INTEGERS]
            for name in str(told["originalLayersNames"].astype(str)).split(","):
                # It marks what it splits off: "conv1/WithoutBiases".
                found.setdefault(name.partition("/WithoutBiases")[0], (kind, floats[0] if floats else None))
        return found

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self._path))
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot load {self._path}: {_reason(error)}.") from error

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        model = self._read()
        model.reshape({model.inputs[0].any_name: list(shape)})
        settings = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return self._core.compile_model(model, "CPU", settings)


def _reason(error: Exception) -> str:
    """The last line that says something: those before tell where in OpenVINO's sources it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
