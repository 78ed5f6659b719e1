"""A model as an ONNX file that fuses to integer kernels; proof that it is the model; how fast it is."""

from compress_aug.deploy.audit import Audit, audit
from compress_aug.deploy.kit import check_kit_folder, write_kit
from compress_aug.deploy.latency import Bench, Latency, bench, latency, read_bench
from compress_aug.deploy.parity import Parity, check_parity, require
from compress_aug.deploy.proof import Rewrite
from compress_aug.deploy.steps import LayerSteps, layer_steps
from compress_aug.deploy.write import Written, image_metadata, read_metadata, write

__all__ = [
    "Audit",
    "Bench",
    "Latency",
    "LayerSteps",
    "Parity",
    "Rewrite",
    "Written",
    "audit",
    "bench",
    "check_kit_folder",
    "check_parity",
    "image_metadata",
    "latency",
    "layer_steps",
    "read_bench",
    "read_metadata",
    "require",
    "write",
    "write_kit",
]
