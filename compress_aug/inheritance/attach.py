"""Attach extra layers that a small net trains through, and drop them again."""

from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.errors import AttachError
from compress_aug.inheritance.blocks import Extended, new_blocks
from compress_aug.inheritance.place import Probe, find_place, module_at
from compress_aug.measure import prunable_layers
from compress_aug.surgery import LogEntry, check_shapes, device_of, layer_shapes, record


def attach_layers(
    model: nn.Module, example: Tensor, *, blocks: int = 10, after: str | None = None
) -> nn.Module:
    """Put extra residual blocks before the pooling, so that a small net can bear strong augmentation.

    example: (N, C, H, W), inputs of the model; only the shape counts
    blocks:  how many, at least 1
    after:   path of the module that they follow; `find_attachment` chooses by default

    Changes the model and returns it. The blocks keep the shape of what they get and start as the identity: in
    eval mode the model computes exactly what it did before. Train with strong augmentation, then call
    `drop_layers`. A block is

    - for a map (N, C, H, W): two 3x3 convolutions; depthwise-separable ones above 512 channels or in a net
      that uses depthwise convolutions; MobileNetV2's inverted block where the net widens inside its blocks;
    - for tokens (N, T, C) and features (N, C): normalisation and two linear layers.

    Behind ResNet20, 10 blocks are 20 layers and 739 840 parameters. The first weights come from torch's
    global random numbers. A training loop must build its optimizer after this call.

    Raises AttachError where no place is found (the sentence names the tensor's shape), for a module that does
    not exist or does not run exactly once, and for a model that has extra layers already.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> attached_at(attach_layers(net, torch.zeros(1, 3, 16, 16), blocks=2))
    '0'
    >>> [name for name, _ in drop_layers(net).named_parameters()]
    ['0.weight', '0.bias', '3.weight', '3.bias']

    Source: arXiv 2305.13232 attaches 20 layers behind ResNet20, trains with strong augmentation, then goes on
    without them. It says neither where exactly, nor of which kind, nor what becomes of the classifier. The
    place, the kind of block, the start as the identity and the one classifier for both are our decisions.
    """
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        raise AttachError(f"blocks must be a whole number from 1 up, found {blocks!r}.")
    _check_free(model)
    place, probe = find_place(model, example, after)
    settings = {
        "at": place.path,
        "blocks": blocks,
        "form": place.form,
        "channels": place.channels,
        "positive": place.positive,
    }
    _check_unchanged(probe, settings)
    layers = _shapes_inside(model, place.path)
    _wrap(model, settings)
    record(model, "attach", **settings, reason=place.reason, layers=layers)
    return model


def drop_layers(model: nn.Module) -> nn.Module:
    """Take the extra layers out again; everything else keeps its weights and gets its old name back.

    Changes the model and returns it. A training loop must build its optimizer after this call.
    Raises AttachError if no layers are attached.
    """
    at = attached_at(model)
    if at is None:
        raise AttachError("There are no extra layers to drop: attach_layers comes first.")
    _unwrap(model, at)
    record(model, "drop", at=at)
    return model


def attached_at(model: nn.Module) -> str | None:
    """The path of the module that extra layers follow; None without extra layers."""
    return next((path for path, module in model.named_modules() if isinstance(module, Extended)), None)


def replay_attach(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Attach the blocks of an "attach" entry to a fresh base model; their weights are loaded afterwards.

    Changes the model and returns it. Writes nothing to its log.
    Raises ModelError or AttachError if the model is not the one that the entry was written for.
    """
    _check_free(model)
    check_shapes(model, entry["layers"], "attach")
    module_at(model, entry["at"])
    return _wrap(model, entry)


def replay_drop(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Drop the layers that `replay_attach` attached. Changes the model and returns it.

    An "attach" and its "drop" could cancel out, were it not for changes between them that name the extra
    layers (a mask). So both are made again. Writes nothing to the model's log.
    Raises AttachError if no layers are attached where the "drop" entry says.
    """
    at: str = entry["at"]
    if attached_at(model) != at:
        raise AttachError(f'No extra layers are attached behind "{at}", where the log drops them.')
    return _unwrap(model, at)


def _check_free(model: nn.Module) -> None:
    at = attached_at(model)
    if at is not None:
        raise AttachError(f'Extra layers are attached behind "{at}" already: drop_layers comes first.')


def _check_unchanged(probe: Probe, settings: dict[str, Any]) -> None:
    """Attach to the copy first: a model may use its modules in a way that a wrapped one does not bear."""
    _wrap(probe.model, settings)
    at = settings["at"]
    try:
        with torch.no_grad():
            output = probe.model(probe.inputs)
    except Exception as error:
        raise AttachError(
            f'The model does not run with layers behind "{at}" ({error}): name another module with `after`.'
        ) from error
    if not torch.allclose(output, probe.output, rtol=0.0, atol=1e-6, equal_nan=True):
        raise AttachError(
            f'Layers behind "{at}" change what the model computes, though they add nothing yet: name another '
            "module with `after`."
        )


def _wrap(model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    extra = new_blocks(settings["form"], settings["channels"], settings["blocks"], settings["positive"])
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    base = module_at(model, settings["at"])
    extended = Extended(base, extra.to(device_of(model), dtype))
    # Not through the whole: a base that is frozen in eval mode stays so.
    extended.training = model.training
    extra.train(model.training)
    model.set_submodule(settings["at"], extended)
    return model


def _unwrap(model: nn.Module, at: str) -> nn.Module:
    extended = model.get_submodule(at)
    assert isinstance(extended, Extended)
    model.set_submodule(at, extended.base)
    return model


def _shapes_inside(model: nn.Module, at: str) -> dict[str, list[int]]:
    """The weight shapes of the layers inside the module at this path."""
    inside = [name for name in prunable_layers(model) if f"{name}.".startswith(f"{at}.")]
    return layer_shapes(model, inside)
