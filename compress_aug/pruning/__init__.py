"""Zero single weights and hold them at zero (torch.nn.utils.prune): the smallest, random ones, N:M, another model's."""

from compress_aug.pruning.choice import chosen_layers
from compress_aug.pruning.gradual import gradual
from compress_aug.pruning.like import mask_like, masks_of, read_masks
from compress_aug.pruning.masks import replay
from compress_aug.pruning.pattern import mask_pattern
from compress_aug.pruning.ranked import Scope, mask_random, mask_smallest
from compress_aug.pruning.redraw import redraw

__all__ = [
    "Scope",
    "chosen_layers",
    "gradual",
    "mask_like",
    "mask_pattern",
    "mask_random",
    "mask_smallest",
    "masks_of",
    "read_masks",
    "redraw",
    "replay",
]
