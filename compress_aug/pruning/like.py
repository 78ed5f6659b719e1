"""The masks of another model: read off it or off its checkpoint, and put on this one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from compress_aug.errors import PruneError, RunFolderError, nearest
from compress_aug.measure import prunable_layers
from compress_aug.pruning.choice import check_layers
from compress_aug.pruning.masks import put_masks
from compress_aug.surgery import layer_shapes, masked_layer, masked_layers, record


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks on a model: name of the layer -> bool, True where a weight stays.

    >>> masks_of(nn.Linear(2, 2))
    {}
    """
    return {name: layer.weight_mask != 0 for name, layer in masked_layers(model).items()}  # type: ignore[misc]


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks in a checkpoint (model.safetensors of a stage): as `masks_of` its model. Reads nothing else of it.

    Raises RunFolderError if `path` is no such file.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            layers = {key: masked_layer(key) for key in opened.keys()}  # noqa: SIM118
            return {layer: opened.get_tensor(key) != 0 for key, layer in layers.items() if layer is not None}
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} is not a checkpoint: {error}.") from None


@torch.no_grad()
def mask_like(model: nn.Module, masks: Mapping[str, Tensor] | nn.Module) -> nn.Module:
    """Give the model the masks of another one: the same structure, for weights of its own.

    masks: a masked model, or name of the layer -> tensor in the shape of its weight, 0 where a weight goes

    Changes the model and returns it. Layers that the masks do not name are left as they are.

    Raises PruneError if there are no masks, for a name that is no convolution or linear layer of this model, for
    another shape, and if a weight that is masked already would come back.

    >>> pruned = nn.Linear(4, 4)
    >>> _ = mask_like(nn.Linear(4, 4), {"": torch.eye(4)})

    Source: for Baseline A of arXiv 2305.13232, section IV-C1, whose pruned net learns from the start. That it
    has the mask which the dense net's training led to is our decision; the paper does not say.
    """
    given = masks_of(masks) if isinstance(masks, nn.Module) else {n: m != 0 for n, m in masks.items()}
    if not given:
        raise PruneError("The other model has no masks: take one that was pruned.")
    layers = prunable_layers(model)
    present = masks_of(model)
    for name, mask in given.items():
        _check_fits(name, mask, layers, present.get(name))
    chosen = {name: layers[name] for name in given}
    check_layers(model, chosen)
    put_masks(model, {name: mask.to(chosen[name].weight.device) for name, mask in given.items()})  # type: ignore[arg-type]
    record(model, "mask", method="like", layers=layer_shapes(model, list(given)))
    return model


def _check_fits(name: str, mask: Tensor, layers: dict[str, nn.Module], present: Tensor | None) -> None:
    if name not in layers:
        hint = nearest(name, list(layers)) if layers else "it has none at all"
        raise PruneError(
            f'There is a mask for "{name}", which is no convolution or linear layer of this model; {hint}'
        )
    shape = layers[name].weight.shape
    if mask.shape != shape:
        raise PruneError(
            f'The mask for layer "{name}" has the shape {list(mask.shape)}, its weight {list(shape)}: '  # type: ignore[arg-type]
            "take the masks of a model of the same sizes."
        )
    if present is not None and bool((mask.to(present.device) & ~present).any()):
        raise PruneError(
            f'The mask for layer "{name}" would give back weights that are masked already: masks only grow, so '
            "put these masks on an earlier model."
        )
