"""redraw: the same net, masks included, with weights that have learned nothing."""

from collections.abc import Iterator

import torch
from torch import nn

from compress_aug.errors import SurgeryError
from compress_aug.pruning.masks import put_masks
from compress_aug.surgery import device_of, masked_layers, record, surgery_log


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights anew, each module by its own `reset_parameters`; masks stay and are applied to the new weights.

    seed: of the draw, on the CPU: the same weights on every device. torch's own random numbers are not moved.

    Changes the model and returns it: scales and shifts are what they were at first, the statistics of batch norms
    are forgotten. The Parameter objects stay the same ones; build a new optimizer nevertheless, for the old one's
    momentum belongs to the old weights. A net of plain layers becomes what building it anew after
    `torch.manual_seed(seed)` gives. What a model's constructor does to its layers beyond their own start (a
    Kaiming normal draw, a residual branch that starts at zero) is not done again: a model does not tell it.

    Raises SurgeryError, before anything is changed, for a quantized model (its scales belong to the old weights),
    for one with attached layers (they would no longer start as the identity), and for modules that hold
    parameters but have no reset_parameters; it names them.

    >>> from compress_aug.measure import sparsity
    >>> from compress_aug.pruning import mask_smallest
    >>> sparsity(redraw(mask_smallest(nn.Linear(10, 10), 0.4), seed=1))
    0.4

    Source: Baseline A of arXiv 2305.13232, section IV-C1, trains the pruned net from the start. That its weights
    are drawn anew under the mask of the other schemes is our decision; the paper does not say.
    """
    _check(model)
    device = device_of(model)
    masks = {name: layer.weight_mask != 0 for name, layer in masked_layers(model).items()}
    model.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in _inside_out(model, set()):
            _reset(module)
    model.to(device)
    put_masks(model, masks)  # type: ignore[arg-type]
    record(model, "redraw", seed=seed)
    return model


def _check(model: nn.Module) -> None:
    verbs = [entry["verb"] for entry in surgery_log(model)]
    if "quantize" in verbs:
        raise SurgeryError(
            "The model is quantized, and its scales belong to its weights: redraw comes before."
        )
    if verbs.count("attach") > verbs.count("drop"):
        raise SurgeryError("Extra layers are attached: drop_layers, redraw, and attach them again.")
    named = model.named_modules()
    stuck = [name or "the model itself" for name, module in named if _own(module) and not _resetter(module)]
    if stuck:
        raise SurgeryError(
            f"These modules hold parameters but have no reset_parameters: {', '.join(stuck[:8])}"
            f"{f' and {len(stuck) - 8} more' if len(stuck) > 8 else ''}. Write one that draws their first values."
        )


def _own(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def _resetter(module: nn.Module) -> object:
    # torch calls that of attention layers private; it is the only one they have.
    private = isinstance(module, nn.MultiheadAttention)
    return getattr(module, "_reset_parameters" if private else "reset_parameters", None)


def _inside_out(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """Each module once, after those inside it: the order in which constructors draw."""
    if module in seen:
        return
    seen.add(module)
    for child in module.children():
        yield from _inside_out(child, seen)
    yield module


def _reset(module: nn.Module) -> None:
    reset = _resetter(module)
    if not callable(reset):
        return
    for name, original in module._parameters.items():
        # A masked layer draws into `weight`, so for now this has to be what lies behind the mask.
        if original is not None and hasattr(module, f"{name.removesuffix('_orig')}_mask"):
            setattr(module, name.removesuffix("_orig"), original.detach())
    reset()
