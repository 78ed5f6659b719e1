"""Any model becomes one of Brevitas layers: quantize, train on, finalize."""

from compress_aug.quantization.bits import is_quantized, mean_weight_bits, unsigned_bits, weight_bits
from compress_aug.quantization.finalize import finalize
from compress_aug.quantization.norms import reestimate_batch_norms
from compress_aug.quantization.quantize import quantize, replay
from compress_aug.quantization.scales import learned_scales
from compress_aug.quantization.twin import without_quantizers

__all__ = [
    "finalize",
    "is_quantized",
    "learned_scales",
    "mean_weight_bits",
    "quantize",
    "reestimate_batch_norms",
    "replay",
    "unsigned_bits",
    "weight_bits",
    "without_quantizers",
]
