"""What a recipe says under `model:` becomes a net, and the net is tried on one image."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress_aug.calls import call
from compress_aug.errors import MissingPart, ModelError, nearest
from compress_aug.models.alexnet import alexnet
from compress_aug.models.mobilenet import mobilenet_v2
from compress_aug.models.preresnet import preresnet, wrn
from compress_aug.models.pyramidnet import pyramidnet
from compress_aug.models.resnet import resnet8, resnet14, resnet18, resnet20, resnet32, resnet56, resnet110
from compress_aug.models.shufflenet import shufflenet_v2
from compress_aug.surgery import copy_model, device_of

ModelSpec = str | Mapping[str, Any] | nn.Module

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v2": shufflenet_v2,
    "alexnet": alexnet,
    "resnet18": resnet18,
}


class Family(NamedTuple):
    """Nets that have their sizes in their names.

    form:    how a name is written; D is a depth, K says how wide
    numbers: what D and K are, in this order: the first arguments of `build`
    known:   the nets of the papers, for hints
    others:  what else people call them, for hints too
    """

    form: str
    build: Callable[..., nn.Module]
    numbers: tuple[str, ...]
    known: tuple[str, ...]
    others: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "wrn": Family(
        "wrn_D_K",
        wrn,
        numbers=("depth", "widening"),
        known=("wrn_16_2", "wrn_16_4", "wrn_28_10", "wrn_40_2"),
        others=("wideresnet", "wide_resnet"),
    ),
    "preresnet": Family(
        "preresnet_D",
        preresnet,
        numbers=("depth",),
        known=("preresnet_56", "preresnet_32", "preresnet_44", "preresnet_164"),
        others=("preactresnet", "preact_resnet"),
    ),
    "pyramidnet": Family(
        "pyramidnet_D_K",
        pyramidnet,
        numbers=("depth", "alpha"),
        known=("pyramidnet_200_240", "pyramidnet_110_48"),
    ),
}

# They read weights from files, or fetch them: a net begins with random weights, and what it learned comes from
# checkpoints, which are read without running code.
_WEIGHTS_OF_TORCHVISION = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
_WEIGHTS_OF_TIMM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")

# Both return three outputs in training unless told not to, and warn unless the start weights are chosen.
_TORCHVISION_EXTRAS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def load_model(spec: ModelSpec, *, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The net that a recipe names, with random weights; nothing is ever downloaded.

    spec: one of
        one of `model_names()`, made for images of about 32x32; D and K stand for numbers: "wrn_16_2"
        "torchvision:NAME" or "timm:NAME", in that library's own form
        "package.module:function", a function that returns a torch Module; where it has a parameter `classes`
            or `num_classes`, `in_channels` or `in_chans`, that is passed
        {"name": one of these names, ...} or {"call": "package.module:function", ...}: the other keys are
            arguments
        a torch Module, which is returned as it is
    classes:     how many the net must tell apart
    image_shape: (C, H, W)

    Raises ModelError for an unknown name, wrong arguments, or a function that fails or returns something
    else; MissingPart if timm is not installed.

    >>> load_model({"name": "resnet8", "width": 4}, classes=10, image_shape=(1, 28, 28)).conv1
    Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    if isinstance(spec, nn.Module):
        return spec
    name, arguments = _parse(spec)
    source, colon, rest = name.partition(":")
    if source == "torchvision":
        return _from_torchvision(rest, {"num_classes": classes, **arguments})
    if source == "timm":
        return _from_timm(rest, {"num_classes": classes, "in_chans": image_shape[0], **arguments})
    if colon:
        return _from_call(name, arguments, classes, image_shape[0])
    build = _ours(name)
    known = _check_arguments(name, build, arguments)
    filled = {"classes": classes, "in_channels": image_shape[0], **arguments}
    if "image_size" in known:
        filled["image_size"] = image_shape[1:]
    return _built(name, lambda: build(**filled))


def check_fits(model: nn.Module, image_shape: tuple[int, int, int], classes: int) -> None:
    """Send one black image through a copy of the model, in eval mode, and look at what comes out.

    Raises ModelError if the model raises, with its own words, or if the output is not (1, classes).

    >>> check_fits(resnet8(10), (3, 32, 32), classes=100)
    Traceback (most recent call last):
    compress_aug.errors.ModelError: The model gives 10 numbers for one image: expected 100, one a class.
    """
    image = torch.zeros(1, *image_shape, device=device_of(model))
    try:
        with torch.no_grad():
            output = copy_model(model).eval()(image)
    # Any error at all: the model is the user's code.
    except Exception as reason:
        words = str(reason).strip().splitlines()[0] if str(reason).strip() else "no words"
        raise ModelError(
            f"An image of shape {image_shape} (channels, height, width) cannot go through the model: "
            f"{type(reason).__name__}: {words}"
        ) from reason
    if not isinstance(output, Tensor):
        raise ModelError(
            f"The model returns a {type(output).__name__}: expected one tensor (images, classes)."
        )
    if output.ndim != 2 or output.shape[0] != 1:
        raise ModelError(
            f"The model gives shape {tuple(output.shape)} for one image: expected (1, {classes})."
        )
    if output.shape[1] != classes:
        raise ModelError(
            f"The model gives {output.shape[1]} numbers for one image: expected {classes}, one a class."
        )


def model_names() -> list[str]:
    """The nets that a recipe may call by name alone; D and K stand for numbers, a depth and how wide.

    >>> model_names()[:2], model_names()[-1]
    (['resnet8', 'resnet14'], 'pyramidnet_D_K')
    """
    return [*MODELS, *(family.form for family in FAMILIES.values())]


def _ours(name: str) -> Callable[..., nn.Module]:
    """The function that builds the net of this name, with the numbers of the name filled in."""
    if name in MODELS:
        return MODELS[name]
    hint = ""
    for word, family in FAMILIES.items():
        if not name.lower().startswith((word, *family.others)):
            continue
        numbers = [int(number) for number in re.findall(r"[0-9]{1,9}", name)]
        if len(numbers) != len(family.numbers):
            hint = (
                f"expected {family.form}, with its {' and '.join(family.numbers)}, such as {family.known[0]}"
            )
            continue
        spelled = "_".join([word, *map(str, numbers)])
        if name == spelled:
            return partial(family.build, *numbers)
        hint = f'did you mean "{spelled}"?'
    raise ModelError(
        f'model: there is no model "{name}"; {hint or _nearest_of_ours(name)} '
        "(or torchvision:NAME, timm:NAME, package.module:function)"
    )


def _nearest_of_ours(name: str) -> str:
    known = [example for family in FAMILIES.values() for example in family.known]
    hint = nearest(name, [*MODELS, *known])
    return hint if hint.startswith("did you mean") else nearest(name, model_names())


def _parse(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping):
        raise ModelError(f"model: expected a name or keys, found {type(spec).__name__}.")
    kinds = [kind for kind in ("name", "call") if kind in spec]
    if len(kinds) != 1:
        found = ", ".join(kinds or map(str, spec)) or "nothing"
        raise ModelError(f"model: expected one of name, call; found {found}.")
    name = str(spec[kinds[0]])
    if kinds == ["call"] and name.partition(":")[0] in ("", "torchvision", "timm", name):
        raise ModelError(f'model: call is "{name}": expected "package.module:function".')
    return name, {key: value for key, value in spec.items() if key != kinds[0]}


def _check_arguments(
    name: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any]
) -> Mapping[str, inspect.Parameter]:
    """Raise ModelError for what the function does not take; returns all that it does."""
    parameters = inspect.signature(build).parameters
    # The size of the images is that of the data.
    known = [key for key in parameters if key != "image_size"]
    for key, value in arguments.items():
        if key not in known:
            raise ModelError(f'model: {name} has no argument "{key}"; {nearest(key, known)}')
        if parameters[key].annotation == bool | None:
            if not isinstance(value, bool):
                raise ModelError(f"model: {key} of {name} is {value!r}: expected true or false.")
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ModelError(f"model: {key} of {name} is {value!r}: expected a number above 0.")
    return parameters


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f'model: torchvision has no classifier "{name}"{_hint(name, known)}')
    arguments = {**_TORCHVISION_EXTRAS.get(name, {}), **arguments}
    _refuse_weights(f"torchvision:{name}", arguments, _WEIGHTS_OF_TORCHVISION)
    return _built(f"torchvision:{name}", lambda: torchvision.models.get_model(name, **arguments))


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise MissingPart(
            f'model: timm:{name} needs timm, which is not installed: pip install "compress-aug[timm]"'
        ) from None
    # A name with a colon (hf-hub:...) or a checkpoint would fetch files.
    if ":" in name or not timm.is_model(name):
        raise ModelError(f'model: timm has no model "{name}"{_hint(name, timm.list_models())}')
    _refuse_weights(f"timm:{name}", arguments, _WEIGHTS_OF_TIMM)
    return _built(f"timm:{name}", lambda: timm.create_model(name, **arguments))


def _refuse_weights(name: str, arguments: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if arguments.get(key) not in (None, False):
            raise ModelError(
                f"model: weights of {name} would be downloaded, or read from a file: leave `{key}` out."
            )


def _hint(name: str, known: list[str]) -> str:
    """The nearest name, but never a list of hundreds."""
    hint = nearest(name, known)
    return f"; {hint}" if hint.startswith("did you mean") else f", among its {len(known)} models."


def _built(name: str, build: Callable[[], Any]) -> nn.Module:
    try:
        model = build()
    except (TypeError, ValueError, RuntimeError, AssertionError) as reason:
        raise ModelError(f"model: {name} cannot be built with these arguments: {reason}") from reason
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: {name} returned a {type(model).__name__}: expected a torch Module.")
    return model


def _from_call(name: str, arguments: dict[str, Any], classes: int, channels: int) -> nn.Module:
    offered = {"classes": classes, "num_classes": classes, "in_channels": channels, "in_chans": channels}
    model = call(name, arguments, "model", offered=offered, error=ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: {name} returned a {type(model).__name__}: expected a torch Module.")
    return model
