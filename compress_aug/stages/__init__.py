"""The vocabulary of recipes: one class per YAML word."""

from compress_aug.stages.attach import Attach, Drop
from compress_aug.stages.augmentation import Augment, Auto, Filter
from compress_aug.stages.base import Outlook, Setup, Stage, State
from compress_aug.stages.distillation import Distill
from compress_aug.stages.export import Export
from compress_aug.stages.keep import Keep
from compress_aug.stages.model import Model
from compress_aug.stages.prune import Gradual, Prune
from compress_aug.stages.prune_channels import PruneChannels
from compress_aug.stages.quantize import Quantize
from compress_aug.stages.redraw import Redraw
from compress_aug.stages.search import Search
from compress_aug.stages.train import Train

STAGES: dict[str, type[Stage]] = {
    "train": Train,
    "prune": Prune,
    "prune_channels": PruneChannels,
    "redraw": Redraw,
    "attach": Attach,
    "drop": Drop,
    "keep": Keep,
    "model": Model,
    "search": Search,
    "quantize": Quantize,
    "export": Export,
}

__all__ = [
    "STAGES",
    "Attach",
    "Augment",
    "Auto",
    "Distill",
    "Drop",
    "Export",
    "Filter",
    "Gradual",
    "Keep",
    "Model",
    "Outlook",
    "Prune",
    "PruneChannels",
    "Quantize",
    "Redraw",
    "Search",
    "Setup",
    "Stage",
    "State",
    "Train",
]
