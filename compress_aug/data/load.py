"""What a recipe says under `data:` becomes a data set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress_aug.calls import call
from compress_aug.data.assemble import assemble
from compress_aug.data.dataset import Data, Options
from compress_aug.data.folder import read_folder
from compress_aug.data.images import Progress
from compress_aug.data.named import NAMED, load_named
from compress_aug.data.own import data_from
from compress_aug.errors import DataError, nearest

DataSpec = str | Mapping[str, Any] | Data | tuple[Any, Any]


def load_data(
    spec: DataSpec, *, seed: int = 0, folder: Path | None = None, on_progress: Progress | None = None
) -> Data:
    """The data set that a recipe names.

    spec: one of
        "digits", "cifar10", "cifar100", "fashion_mnist", or {"name": ..., "root": where downloads go}
        {"folder": path, "image_size": pixels, "in_memory": true or false, "workers": number}: images by
            class, below train/ and test/ (or val/; with both, val/ is for validation), or without these:
            then a fixed fifth is for testing
        "package.module:function" or {"call": "package.module:function", ...}: a function of the other keys
            that returns a `Data`, or a pair (train, test) for `data_from`
        a pair (train, test) for `data_from`, or a `Data`, which is returned as it is
        The first two also take validation (a share, 0.1), train and test (at most so many images),
        crop_padding (pixels) and flip.
    seed:   which training images are held out for validation
    folder: where relative paths start; None = the current folder
    on_progress: told how many images of a folder are decoded, of how many

    Raises DataError, in one sentence, for whatever is missing, unknown, broken or does not fit.

    >>> data = load_data("digits")
    >>> data.image_shape, len(data.train), len(data.validation), len(data.test)
    ((3, 32, 32), 1294, 144, 359)
    """
    if isinstance(spec, Data):
        return spec
    if isinstance(spec, tuple) and len(spec) == 2:
        return data_from(*spec, seed=seed, on_progress=on_progress)
    kind, value, rest = _parse(spec)
    start = folder or Path()
    if kind == "call":
        return _from_call(value, rest, seed, on_progress)
    if kind == "name":
        if value not in NAMED:
            hint = nearest(value, list(NAMED)) + _path_hint(value, start)
            raise DataError(f'data: there is no data set "{value}"; {hint}')
        options, other = _options(rest, _NAMED_KEYS if NAMED[value].files else {}, value)
        return load_named(value, start / other.get("root", "data"), options, seed)
    options, other = _options(rest, _FOLDER_KEYS, "a folder of images")
    path = start / Path(value).expanduser()
    classes, train, test, validation = read_folder(path, other.pop("image_size", None))
    return assemble(
        path.resolve().name,
        classes,
        train=train,
        test=test,
        validation=validation,
        options=options,
        threads=train.threads,
        seed=seed,
        on_progress=on_progress,
        **other,
    )


def data_names() -> list[str]:
    """The data sets that a recipe may call by name.

    >>> data_names()
    ['digits', 'cifar10', 'cifar100', 'fashion_mnist']
    """
    return list(NAMED)


def _parse(spec: Any) -> tuple[str, str, dict[str, Any]]:
    """The kind of data set, what names it, and what else is said of it."""
    if isinstance(spec, str):
        return ("call" if ":" in spec else "name"), spec, {}
    if not isinstance(spec, Mapping):
        raise DataError(f"data: expected a name or keys, found {type(spec).__name__}.")
    kinds = [kind for kind in ("name", "folder", "call") if kind in spec]
    if len(kinds) != 1:
        found = ", ".join(kinds or map(str, spec)) or "nothing"
        raise DataError(f"data: expected one of name, folder, call; found {found}.")
    rest = {key: value for key, value in spec.items() if key != kinds[0]}
    return kinds[0], str(spec[kinds[0]]), rest


def _from_call(text: str, arguments: Mapping[str, Any], seed: int, on_progress: Progress | None) -> Data:
    made = call(text, arguments, "data", error=DataError)
    if isinstance(made, Data):
        return made
    if isinstance(made, tuple | list) and len(made) == 2:
        return data_from(*made, name=text, seed=seed, on_progress=on_progress)
    raise DataError(
        f"data: {text} returned a {type(made).__name__}: expected a compress_aug Data, or a pair of a "
        "training and a test set."
    )


def _path_hint(value: str, start: Path) -> str:
    return f"; for the folder of that name write {{folder: {value}}}" if (start / value).is_dir() else ""


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _truth(value: object) -> bool:
    return isinstance(value, bool)


def _text(value: object) -> bool:
    return isinstance(value, str | Path)


Rule = tuple[Callable[[object], bool], str]

_COMMON_KEYS: dict[str, Rule] = {
    "validation": (_share, "a share from 0 to below 1"),
    "train": (_count, "a number of images, 1 or more"),
    "test": (_count, "a number of images, 1 or more"),
    "crop_padding": (_whole, "a number of pixels, 0 or more"),
    "flip": (_truth, "true or false"),
}
_NAMED_KEYS: dict[str, Rule] = {"root": (_text, "a path")}
_FOLDER_KEYS: dict[str, Rule] = {
    "image_size": (_count, "a number of pixels, 1 or more"),
    "in_memory": (_truth, "true or false"),
    "workers": (_whole, "a number of processes, 0 or more"),
}


def _options(given: Mapping[str, Any], more: Mapping[str, Rule], what: str) -> tuple[Options, dict[str, Any]]:
    """The options common to all data sets, and those of this kind. Refuses unknown keys and wrong values."""
    rules = {**_COMMON_KEYS, **more}
    # A key without a value stands for its default, as everywhere in YAML.
    said = {key: value for key, value in given.items() if value is not None}
    for key, value in said.items():
        if key not in rules:
            raise DataError(f'data: {what} has no key "{key}"; {nearest(key, list(rules))}')
        fits, expected = rules[key]
        if not fits(value):
            raise DataError(f"data: {key} is {value!r}: expected {expected}.")
    common = {key: value for key, value in said.items() if key in _COMMON_KEYS}
    return Options(**common), {key: value for key, value in said.items() if key in more}
