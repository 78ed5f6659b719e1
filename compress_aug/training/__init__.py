"""The one training loop: Training holds a stage's whole state, fit drives it to its end."""

from compress_aug.training.driver import fit
from compress_aug.training.loop import History, Training
from compress_aug.training.objective import CrossEntropy, Objective
from compress_aug.training.settings import (
    Settings,
    build_optimizer,
    facts_of,
    lr_factor,
    mixed_seed,
)

__all__ = [
    "CrossEntropy",
    "History",
    "Objective",
    "Settings",
    "Training",
    "build_optimizer",
    "facts_of",
    "fit",
    "lr_factor",
    "mixed_seed",
]
