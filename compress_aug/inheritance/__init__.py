"""Attach extra layers; drop them again, keep the rest."""

from compress_aug.inheritance.attach import (
    attach_layers,
    attached_at,
    drop_layers,
    replay_attach,
    replay_drop,
)
from compress_aug.inheritance.place import find_attachment

__all__ = [
    "attach_layers",
    "attached_at",
    "drop_layers",
    "find_attachment",
    "replay_attach",
    "replay_drop",
]
