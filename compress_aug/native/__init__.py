"""Compiled kernels: the library that the installation built is loaded once, or one line says what is used instead."""

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger("compress_aug")

ABI = 3
"""What `native_abi` of the library must say; levels.c has the same number."""

LIBRARY = Path(__file__).with_name("kernels.so")

SWITCH = "COMPRESS_AUG_NATIVE"
"""The environment variable that, set to 0, switches the kernels off: when this runs, and when it is built."""

_POINTER, _SIZE, _FLAG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

# The arguments of each kernel, as its C file lists them. All of them return an int, 0 for success.
_ARGUMENTS: dict[str, list[type]] = {
    "augment": [
        *(_POINTER, _POINTER),  # images, result
        *(_SIZE, _SIZE, _SIZE, _SIZE),  # count, channels, height, width
        *(_POINTER, _POINTER, _POINTER, _SIZE),  # operations, arguments, places, steps
        *(_POINTER, _POINTER),  # maps, map_rows
        *(_POINTER, _FLAG),  # fill, bilinear
    ],
    "fake_quant": [
        *(_POINTER, _POINTER),  # input, output
        *(_SIZE, _SIZE, _POINTER),  # rows, columns, scales
        *(_FLOAT, _FLOAT, _FLOAT, _FLOAT),  # smallest, largest, low, high
        *(_FLAG, _FLAG, _FLAG),  # clips, is_bfloat16, threads
    ],
    "fake_quant_gradient": [
        *(_POINTER, _POINTER, _POINTER, _POINTER),  # input, gradient, result, sums
        *(_SIZE, _SIZE, _POINTER),  # rows, columns, scales
        *(_FLOAT, _FLOAT, _FLOAT, _FLOAT),  # smallest, largest, low, high
        *(_FLAG, _FLAG, _FLAG, _FLAG),  # clips, passes, is_bfloat16, threads
    ],
}


@dataclass(frozen=True)
class Kernels:
    """The functions of the library. A call releases the GIL; nothing about its pointers is checked.

    level:   which instructions they are compiled for: "baseline", "avx2", "avx512" or "avx512_bf16"
    has_team: whether a kernel that takes `threads` finds torch's own (torch must be imported before the first call
              of `kernels`); if not, it works on one
    augment: see augment.c; 0, or 1 without memory, or 2 at an unknown operation
    fake_quant, fake_quant_gradient: see fake_quant.c; always 0
    """

    level: str
    has_team: bool
    augment: Callable[..., int]
    fake_quant: Callable[..., int]
    fake_quant_gradient: Callable[..., int]


class _Unusable(Exception):
    """Why there are no kernels."""


@cache
def kernels() -> Kernels | None:
    """The compiled kernels for this processor; None, and one line in the log "compress_aug", where there are none.

    >>> found = kernels()
    >>> found is None or found.level in ("baseline", "avx2", "avx512", "avx512_bf16")
    True
    """
    if os.environ.get(SWITCH) == "0":
        log.info(
            "%s is 0: plain torch is used instead of the compiled kernels, with the same results.", SWITCH
        )
        return None
    try:
        return _load(LIBRARY)
    except _Unusable as reason:
        log.warning(
            "%s: plain torch is used instead of the compiled kernels, with the same results but several times "
            "slower; to get them, install compress_aug again with a C compiler (gcc or clang) at hand, or set "
            "%s=0 to do without.",
            reason,
            SWITCH,
        )
        return None


def _load(path: Path, level: str = "") -> Kernels:
    """The kernels of one level, the best that this processor can run unless it is named."""
    if not path.exists():
        raise _Unusable(f"{path} is not there")
    try:
        library = ctypes.CDLL(str(path))
        abi = library.native_abi()
        library.native_level.restype = ctypes.c_char_p
        level = level or library.native_level().decode()
        functions = {name: getattr(library, f"{name}_{level}") for name in _ARGUMENTS} if abi == ABI else {}
    except (OSError, AttributeError) as error:
        raise _Unusable(f"{path} cannot be used ({error})") from None
    if abi != ABI:
        raise _Unusable(f"{path} has interface {abi}, and this version of compress_aug needs {ABI}")
    for name, function in functions.items():
        function.argtypes, function.restype = _ARGUMENTS[name], ctypes.c_int
    return Kernels(level, bool(library.native_has_team()), **functions)
