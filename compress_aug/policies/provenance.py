"""Where a schedule comes from: a free mapping of plain values, such as YAML can hold."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from compress_aug.errors import RecipeError

# What a reader refuses as too deeply nested must not be written; nobody needs a fraction of that.
_DEEPEST = 10


def plain_mapping(provenance: Any) -> dict[str, Any]:
    """A copy of the mapping, with plain values only: text, numbers, true, false, null, lists, mappings.

    Raises RecipeError that names the key whose value is something else.

    >>> plain_mapping({"search": {"population": 16}, "seeds": (0, 1)})
    {'search': {'population': 16}, 'seeds': [0, 1]}
    """
    if not isinstance(provenance, Mapping):
        raise RecipeError(f"provenance: expected keys and values, found {type(provenance).__name__}")
    copied: dict[str, Any] = _plain(provenance, "provenance", _DEEPEST)
    return copied


def _plain(value: Any, key: str, deepest: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    # Subclasses (a number of numpy's, an enum) become what they are a kind of: a writer knows only that.
    for kind in (str, int, float):
        if isinstance(value, kind):
            if isinstance(value, float) and not isfinite(value):
                raise RecipeError(f"{key}: expected a finite number, found {value!r}")
            return kind(value)
    if isinstance(value, list | tuple | Mapping) and not deepest:
        raise RecipeError(f"{key}: too deeply nested; at most {_DEEPEST} levels are kept")
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}.{n}", deepest - 1) for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        for word in value:
            if not isinstance(word, str):
                raise RecipeError(f"{key}: expected words as keys, found {word!r}")
        return {str(word): _plain(item, f"{key}.{word}", deepest - 1) for word, item in value.items()}
    kind_name = type(value).__name__
    raise RecipeError(
        f"{key}: expected text, a number, true, false, null, a list or a mapping, found {kind_name}"
    )
