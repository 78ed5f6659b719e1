"""A fresh net that takes the place of another one, and is built again from a checkpoint by its name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from compress_aug.errors import ModelError
from compress_aug.models.load import load_model
from compress_aug.surgery import LogEntry, record

VERB = "model"


def fresh_model(
    name: str, arguments: Mapping[str, Any], *, classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """A net with random weights whose log says how to build it.

    name:      of a shipped net, torchvision:NAME or timm:NAME; no function of one's own, because a checkpoint would
               then run the code of whoever wrote it
    arguments: further ones, as under `model:` of a recipe

    Raises ModelError for other names and wrong arguments.

    >>> from compress_aug.surgery import surgery_log
    >>> model = fresh_model("resnet8", {"width": 4}, classes=10, image_shape=(1, 8, 8))
    >>> surgery_log(model)[0]["verb"]
    'model'
    """
    check_name(name)
    check_arguments(arguments)
    model = load_model({"name": name, **arguments}, classes=classes, image_shape=image_shape)
    record(model, VERB, name=name, arguments=dict(arguments), classes=classes, image_shape=list(image_shape))
    return model


def replay(model: nn.Module, entry: LogEntry) -> nn.Module:
    """The net of a log entry in place of whatever there is; its weights are random.

    Raises ModelError for an entry that no `fresh_model` has written.
    """
    name, arguments, classes, shape = (entry[key] for key in ("name", "arguments", "classes", "image_shape"))
    if not isinstance(name, str):
        raise _damaged("name", "a text", name)
    if not isinstance(arguments, dict):
        raise _damaged("arguments", "keys with their values", arguments)
    if not _is_count(classes):
        raise _damaged("classes", "a number above 0", classes)
    if not isinstance(shape, list) or len(shape) != 3 or not all(map(_is_count, shape)):
        raise _damaged("image_shape", "channels, height and width", shape)
    return fresh_model(name, arguments, classes=classes, image_shape=(shape[0], shape[1], shape[2]))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _damaged(key: str, expected: str, found: object) -> ModelError:
    return ModelError(f'the log is damaged: its change "{VERB}" has {key} {found!r}, expected {expected}')


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise ModelError for arguments that would take the place of the name, which alone is checked."""
    for key in ("name", "call"):
        if key in arguments:
            raise ModelError(
                f'model: "{key}" is no argument of a net: write name: beside arguments:, not among them'
            )


def check_name(name: str) -> None:
    """Raise ModelError for a name that stands for code of one's own."""
    source, colon, _ = name.partition(":")
    if colon and source not in ("torchvision", "timm"):
        raise ModelError(
            f'"{name}" is a function of your own, which a checkpoint could not build again without running code: '
            "expected a shipped net, torchvision:NAME or timm:NAME"
        )
