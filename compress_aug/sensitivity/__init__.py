"""Which layers bear which change: one layer is changed alone, the accuracy read, the layer put back."""

from compress_aug.sensitivity.prune import SPARSITIES, scan_pruning
from compress_aug.sensitivity.result import LayerScan, Sensitivity
from compress_aug.sensitivity.scan import Change, scan

__all__ = ["SPARSITIES", "Change", "LayerScan", "Sensitivity", "scan", "scan_pruning"]
