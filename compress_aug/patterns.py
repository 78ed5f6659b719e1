"""Layers picked by name, by glob or by type, and what a pattern may have meant that picks none."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from compress_aug.errors import nearest

_NAMES_TOLD = 8


def matched(every: Mapping[str, nn.Module], pattern: str) -> set[str]:
    """The names that a pattern picks among these layers.

    pattern: a module name ("fc"; that of a larger module, "layer1", stands for all layers in it), a glob over
             whole names ("*.conv2"; `*` matches dots too) or a type ("Conv2d", "Linear")

    >>> sorted(matched({"layer1.0": nn.Conv2d(1, 1, 1), "fc": nn.Linear(1, 1)}, "layer1"))
    ['layer1.0']
    """
    return {name for name, layer in every.items() if _matches(pattern, name, layer)}


def _matches(pattern: str, name: str, layer: nn.Module) -> bool:
    # All names of the class, so that "Conv2d" finds its quantized form as well.
    types = (kind.__name__ for kind in type(layer).__mro__)
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") or pattern in types


def no_match(every: Mapping[str, nn.Module], pattern: str) -> str:
    """The sentence about a pattern that picks none of these layers, with the nearest names."""
    return f'"{pattern}" matches no convolution or linear layer; {_hint(pattern, every)}'


def _hint(pattern: str, every: Mapping[str, nn.Module]) -> str:
    # As torch.nn names them: attention has a linear layer of a class of its own.
    types = sorted({_type(layer) for layer in every.values()})
    parts = {".".join(name.split(".")[:n]) for name in every for n in range(1, name.count(".") + 1)}
    # What stands around the star of a glob is what a typing mistake is in.
    close = nearest(pattern.strip("*.?"), [*types, *every, *sorted(parts)])
    return close if close.startswith("did you mean") else f"known are: {told([*types, *every])}"


def _type(layer: nn.Module) -> str:
    own = type(layer)
    names = (kind.__name__ for kind in own.__mro__ if own.__module__.startswith("torch."))
    return next((name for name in names if hasattr(nn, name)), own.__name__)


def told(names: Sequence[str]) -> str:
    """The first eight names, and how many more there are."""
    more = len(names) - _NAMES_TOLD
    return ", ".join(names[:_NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")
