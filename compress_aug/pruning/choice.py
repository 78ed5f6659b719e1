"""Which layers take part: by name, by glob or by type; and which of them cannot carry a mask."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from compress_aug.errors import PruneError
from compress_aug.measure import prunable_layers
from compress_aug.patterns import matched, no_match, told
from compress_aug.surgery import holder_of

Patterns = Sequence[str] | None


def chosen_layers(
    model: nn.Module, layers: Patterns = None, exclude: Patterns = None
) -> dict[str, nn.Module]:
    """The convolution and linear layers (attention's projections among them), by name, that `layers` matches and
    `exclude` does not.

    layers, exclude: each a list of module names ("fc"; that of a larger module, "layer1", stands for all layers
                     in it), globs over whole names ("*.conv2"; `*` matches dots too) and types ("Conv2d", "Linear").
                     None: all layers take part, none is left out.

    Raises PruneError for a pattern that matches no layer, with the nearest names, and if no layer is left.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    >>> list(chosen_layers(net, exclude=["Linear"]))
    ['0']
    """
    every = prunable_layers(model)
    if not every:
        raise PruneError("The model has no convolution or linear layer, so there is no weight to prune.")
    if layers is not None and not layers:
        raise PruneError("layers is an empty list: name at least one layer, or leave it out for all.")
    taken = set(every) if layers is None else _matched(every, layers, "layers")
    left_out = set() if exclude is None else _matched(every, exclude, "exclude")
    chosen = {name: layer for name, layer in every.items() if name in taken - left_out}
    if not chosen:
        raise PruneError(
            f"layers and exclude leave no layer to prune: exclude matches all of {told(sorted(taken))}."
        )
    return chosen


def _matched(every: dict[str, nn.Module], patterns: Sequence[str], key: str) -> set[str]:
    if isinstance(patterns, str):
        raise PruneError(f'{key} is a list of names, globs and types: write ["{patterns}"].')
    found: set[str] = set()
    for pattern in patterns:
        names = matched(every, pattern)
        if not names:
            raise PruneError(f"{key}: {no_match(every, pattern)}")
        found |= names
    return found


def check_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Refuse, before anything is changed, what cannot carry a mask of its own. Raises PruneError."""
    for name, layer in layers.items():
        held = held_weight(layer)
        if held is None:
            raise PruneError(
                f'Layer "{name}" computes its weight (weight normalisation, for example) instead of '
                "holding it as a parameter: remove that before pruning."
            )
        if not getattr(layer, "has_zero", True):
            raise PruneError(
                f'Layer "{name}" has DoReFa weights, which have no level at zero, so that none can be pruned: '
                'prune first, and quantize by scheme "integer".'
            )
        if is_lazy(held):
            raise PruneError(
                f'Layer "{name}" has no weight yet: run one batch through the model before pruning.'
            )
    _check_shared(model, layers.items())


def _check_shared(model: nn.Module, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """A weight that two layers use would need one mask; torch gives each layer its own."""
    for name, layer in layers:
        own = held_weight(layer)
        # A quantized layer holds its own weight once more inside its quantizer, and that of a projection is held by
        # its attention: that is no sharing.
        inside = {*layer.modules(), holder_of(model, name)[0]}
        for other_name, other in model.named_modules():
            if other not in inside and any(own is parameter for parameter in other._parameters.values()):
                raise PruneError(
                    f'Layers "{name}" and "{other_name}" share one weight, which cannot carry two masks: '
                    "give each its own copy of the weight before pruning."
                )


def held_weight(layer: nn.Module) -> nn.Parameter | None:
    """The parameter that training changes: behind the mask, where there is one."""
    return layer._parameters.get("weight_orig" if hasattr(layer, "weight_mask") else "weight")
