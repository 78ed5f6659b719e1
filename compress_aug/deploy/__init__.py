"""A model as an ONNX file that fuses to integer kernels; proof that it is the model; how fast it is."""

from compress_aug.deploy.audit import Audit, audit
from compress_aug.deploy.latency import Latency, latency
from compress_aug.deploy.parity import Parity, check_parity, require
from compress_aug.deploy.write import Written, image_metadata, read_metadata, write

__all__ = [
    "Audit",
    "Latency",
    "Parity",
    "Written",
    "audit",
    "check_parity",
    "image_metadata",
    "latency",
    "read_metadata",
    "require",
    "write",
]
