"""A user's function, named as "package.module:function": find it, check its arguments, call it."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from compress_aug.errors import RecipeError, UserError, nearest


def import_call(text: str, what: str, *, error: type[UserError] = RecipeError) -> Callable[..., Any]:
    """The function (or class) that "package.module:function" names.

    what:  what the name stands for in the recipe, for the error's sentence: "data", "model", ...
    error: the class of the error to raise.

    The current folder is searched first, during this import only. Raises `error` if the text is not of that
    form, the module does not import, or it holds no such function.

    >>> import_call("math:sqrt", "example")(9)
    3.0
    """
    module_name, colon, function_name = text.partition(":")
    if not colon or not module_name or not function_name.isidentifier():
        raise error(f'{what}: expected "package.module:function", found "{text}".')
    module = _import(module_name, what, error)
    function = getattr(module, function_name, None)
    if function is None:
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = f"; {nearest(function_name, known)}" if known else "; it defines no function"
        raise error(f'{what}: module "{module_name}" has no function "{function_name}"{hint}')
    if not callable(function):
        raise error(f'{what}: "{text}" is a {type(function).__name__}, expected a function or a class.')
    return function  # type: ignore[no-any-return]  # any callable a user wrote


def call(
    text: str,
    arguments: Mapping[str, Any],
    what: str,
    *,
    offered: Mapping[str, Any] | None = None,
    error: type[UserError] = RecipeError,
) -> Any:
    """Call the function that the text names, and tell its mistakes in one sentence.

    arguments: keyword arguments from the recipe.
    offered:   further arguments, passed only where the function names them and the recipe did not give them.

    Raises `error` as `import_call` does, if the arguments do not fit, or if the function itself raises.

    >>> call("statistics:mean", {"dat": [1, 2]}, "example")
    Traceback (most recent call last):
    compress_aug.errors.RecipeError: example: statistics:mean has no argument "dat"; did you mean "data"?
    """
    function = import_call(text, what, error=error)
    given = dict(arguments)
    signature = _signature(function)
    if signature is not None:
        known = signature.parameters
        given = {**{key: value for key, value in (offered or {}).items() if key in known}, **given}
        _check_arguments(text, signature, given, what, error)
    try:
        with _current_folder_importable():
            return function(**given)
    except UserError:
        raise
    # Whatever the user's code raises is the user's to see: its own words, and its traceback as the cause.
    except (Exception, SystemExit) as reason:
        raise error(f"{what}: {text} raised {type(reason).__name__}: {reason}") from reason


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The parameters of a function; None for the few built in ones that do not tell."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def _check_arguments(
    text: str, signature: inspect.Signature, given: Mapping[str, Any], what: str, error: type[UserError]
) -> None:
    known = [name for name in signature.parameters if not name.startswith("_")]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for key in given:
        if key not in known and not takes_any:
            hint = nearest(key, known) if known else "it takes none."
            raise error(f'{what}: {text} has no argument "{key}"; {hint}')
    try:
        signature.bind(**given)
    except TypeError as reason:
        raise error(f"{what}: {text} cannot be called: {reason}; it takes {', '.join(known)}.") from None


def _import(name: str, what: str, error: type[UserError]) -> ModuleType:
    try:
        with _current_folder_importable():
            return importlib.import_module(name)
    except ModuleNotFoundError as reason:
        # A missing module inside the user's module is another mistake than a wrong name in the recipe.
        if reason.name is not None and (name == reason.name or name.startswith(reason.name + ".")):
            raise error(
                f'{what}: there is no module "{reason.name}" in {Path.cwd()} or among the installed packages'
                f"{_near_file(reason.name)}"
            ) from None
        raise error(f'{what}: module "{name}" does not import: {reason}') from reason
    except (Exception, SystemExit) as reason:
        raise error(f'{what}: module "{name}" does not import: {type(reason).__name__}: {reason}') from reason


def _near_file(name: str) -> str:
    """A hint at the Python file or folder of the current folder with nearly this name."""
    here = [path.stem for path in Path.cwd().iterdir() if path.suffix == ".py" or path.is_dir()]
    hint = nearest(name.partition(".")[0], here)
    return f"; {hint}" if hint.startswith("did you mean") else "."


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    # A file written since the last import (by a test, in a notebook) is seen only after this.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # The user's code may have taken it out itself.
        if folder in sys.path:
            sys.path.remove(folder)
