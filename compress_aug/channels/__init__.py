"""Cut channels for good, to a ratio or a budget (torch-pruning)."""

from compress_aug.channels.cut import cut_channels, replay

__all__ = ["cut_channels", "replay"]
