"""Where recipes/ and export/ lie, in a wheel, a clone or an editable install; and files written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder `recipes` or `export` that ships with this package.

    In a wheel it lies inside the package, in a clone (or an editable install) beside it.
    Raises FileNotFoundError if the installation is damaged.
    """
    for place in (_PACKAGE / name, _PACKAGE.parent / name):
        if place.is_dir() and not (place / "__init__.py").exists():
            return place
    raise FileNotFoundError(f"compress_aug is installed without its folder {name}/: install it again")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` once the block ends without an error.

    A reader therefore sees the old file or the new one, never half of one, even after a power cut.

    >>> with written_whole(Path("report.json")) as temporary:
    ...     _ = temporary.write_text("{}")
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
