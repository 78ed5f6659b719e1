"""Which layers bear which change: one layer is changed alone, the accuracy read, the layer put back."""

from compress_aug.sensitivity.bits import BITS, scan_bits
from compress_aug.sensitivity.choose import choose_bits
from compress_aug.sensitivity.prune import SPARSITIES, scan_pruning
from compress_aug.sensitivity.result import LayerScan, Sensitivity
from compress_aug.sensitivity.scan import Change, scan

__all__ = [
    "BITS",
    "SPARSITIES",
    "Change",
    "LayerScan",
    "Sensitivity",
    "choose_bits",
    "scan",
    "scan_bits",
    "scan_pruning",
]
