"""Text files read and written whole, their troubles told in one sentence."""

from pathlib import Path

from compress_aug.errors import RecipeError
from compress_aug.folders import written_whole


def read_text(path: Path) -> str:
    """The text of a file. Raises RecipeError if there is none, or it is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}.") from None


def write_text(path: Path, text: str) -> None:
    """Write the text whole or not at all. Raises RecipeError if the folder is missing or cannot be written."""
    try:
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror or error}.") from None
