"""A file opened in ONNX Runtime on the CPU, with what can go wrong told in a sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from compress_aug.errors import ExportError


class Session:
    """A file that is ready to run; or a graph that is no file.

    threads:   that one layer may use
    optimize:  whether the runtime may fuse and reorder
    optimized: where to write the fused graph, if anywhere; in this case, memory is not laid out for this
               processor, after which layers would have lost their names

    Raises ExportError if the file is missing or is no model that this runtime can run.
    """

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        threads: int = 1,
        optimize: bool = True,
        optimized: Path | None = None,
    ) -> None:
        self.name = str(model) if isinstance(model, Path) else "the graph"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # 3: errors only. Warnings go to the terminal past Python, and tell of nothing a user could change.
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if isinstance(model, Path) and not model.is_file():
            raise ExportError(f"There is no file {model}.")
        given = model if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        # The runtime raises one class for each of its status codes, all of them plain Exceptions.
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load {self.name}: {_reason(error)}.") from error
        self._input = self._session.get_inputs()[0].name

    @property
    def metadata(self) -> dict[str, str]:
        """What was written into the file beside the graph."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Logits float32 (N, K) of float32 inputs (N, C, H, W).

        Raises ExportError if the runtime refuses them.
        """
        return self.run_all({self._input: inputs})[0]

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output, in the order of the graph, of all inputs by their names.

        Raises ExportError if the runtime refuses them.
        """
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as error:
            shapes = ", ".join(str(value.shape) for value in inputs.values())
            raise ExportError(
                f"ONNX Runtime cannot run {self.name} on inputs of shape {shapes}: {_reason(error)}."
            ) from error
        return [np.asarray(output) for output in outputs]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
