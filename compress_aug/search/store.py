"""Where a population search keeps the states of its members and its journal: in a folder, or in memory."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from compress_aug.errors import RunFolderError
from compress_aug.folders import written_whole

JOURNAL = "population.json"
START, MEMBER = "start.pt", "member-"


class Store:
    """States of trainings, in files or in memory, and the journal, which alone says which of them count."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, bytes] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        if self.folder is None:
            self._memory[name] = buffer.getvalue()
            return
        with written_whole(self.folder / name) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def get(self, name: str, device: torch.device) -> Mapping[str, Any]:
        source: Any = io.BytesIO(self._memory[name]) if self.folder is None else self.folder / name
        try:
            state: Mapping[str, Any] = torch.load(source, map_location=device, weights_only=True)
        except FileNotFoundError:
            raise RunFolderError(
                f"{source} is missing: delete {JOURNAL} beside it, and the search begins anew."
            ) from None
        except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
            raise self.damaged(name, error) from None
        return state

    def damaged(self, name: str, error: Exception) -> RunFolderError:
        said = str(error).strip().split("\n")[0].split(". ")[0]
        return RunFolderError(
            f"{self.folder and self.folder / name} is damaged ({said}): delete {JOURNAL} beside it, and the search "
            "begins anew."
        )

    def drop(self, but: set[str], also: str = "") -> None:
        """Forget the states of members, but those named, and one other."""
        there = (
            list(self._memory) if self.folder is None else [path.name for path in self.folder.glob("*.pt")]
        )
        for name in there:
            if name == also or (name.startswith(MEMBER) and name not in but):
                if self.folder is None:
                    del self._memory[name]
                else:
                    (self.folder / name).unlink()

    def write(self, name: str, text: str) -> None:
        if self.folder is not None:
            with written_whole(self.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def read(self, name: str) -> dict[str, Any] | None:
        path = None if self.folder is None else self.folder / name
        if path is None or not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise damaged_file(path, str(error)) from None
        if not isinstance(found, dict):
            raise damaged_file(path, f"it holds a {type(found).__name__}")
        return found


def damaged_file(path: Path, how: str) -> RunFolderError:
    """The error for a file of a search that cannot be gone on with. how: what is wrong with it, in a few words."""
    return RunFolderError(f"{path} is damaged ({how}): delete it, and the search begins anew.")
