"""What `quantize` refuses, in words: example, model, and a graph that computes something else."""

import torch
from torch import Tensor, nn

from compress_aug.errors import QuantizeError
from compress_aug.quantization.bits import is_quantized

# How far folding batch norms may move the outputs, as a share of the largest one.
_TOLERANCE = 1e-2


def check_inputs(model: nn.Module, example: object) -> None:
    """Raises QuantizeError unless the model is float and the example an image (1, C, H, W)."""
    if is_quantized(model):
        raise QuantizeError("The model is quantized already: quantize the float model it was made from.")
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.ndim != 4:
        raise QuantizeError(f"example must be one float image (1, C, H, W), found {form(example)}.")


def form(value: object) -> str:
    """What a value is, for a sentence.

    >>> form(torch.zeros(2, 3))
    'torch.float32 [2, 3]'
    """
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@torch.no_grad()
def outputs_of(model: nn.Module, example: Tensor) -> Tensor:
    """What the model makes of the example. Raises QuantizeError if it fails, or returns no single tensor."""
    try:
        outputs = model(example)
    except (RuntimeError, ValueError, TypeError) as reason:
        raise QuantizeError(
            f"The example {list(example.shape)} does not pass through {type(model).__name__}: {reason}"
        ) from reason
    if not isinstance(outputs, Tensor):
        raise QuantizeError(
            f"{type(model).__name__} must return one tensor to be quantized, found {type(outputs).__name__}."
        )
    return outputs


@torch.no_grad()
def check_same(graph_model: nn.Module, example: Tensor, expected: Tensor) -> None:
    """Refuse a graph that lost something on the way, such as a write into a part of another tensor."""
    difference = float((graph_model(example) - expected).abs().max())
    largest = float(expected.abs().max())
    # Written so that a difference that is no number is refused as well.
    if not difference <= _TOLERANCE * largest + 1e-6:
        raise QuantizeError(
            f"The traced {type(graph_model).__name__} does not compute what the model does: outputs differ "
            f"by {difference:.3g} where the largest is {largest:.3g}. Does its forward write into a "
            "tensor that it also reads under another name?"
        )
