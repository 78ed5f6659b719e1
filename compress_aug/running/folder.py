"""A run's folder: which one, what lies in it, and how it stays whole whenever the run is stopped."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import nn

from compress_aug import checkpoint
from compress_aug.errors import RunFolderError
from compress_aug.folders import written_whole
from compress_aug.policies import PolicySchedule, read_schedule, write_schedule
from compress_aug.reading import Key, dotted, read_yaml
from compress_aug.recipe import Recipe
from compress_aug.schedule import AnySchedule
from compress_aug.stages import Outlook, Stage
from compress_aug.stages.base import KEPT_NAME


class RunFolder:
    """Paths and files of one run.

    recipe.yaml               as resolved
    report.json               the contract that other programs read; written anew after each stage
    NN-word/model.safetensors the model after that stage, log and weights
    NN-word/training.pt       the state of a training under way; gone once the stage is done
    NN-word/done.json         the stage's row; written last, so a stage with it is done and one without is not
    schedules/NAME.yaml       copies of the schedule files that the recipe names
    kept/NAME.safetensors     frozen models, kept/NAME.yaml schedules, which other recipes may name
    start/model.safetensors   what the run started from, if not from a fresh model
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, object] = {}

    def stage(self, index: int, stage: Stage) -> Path:
        """The folder of a stage."""
        return self.path / f"{index:02d}-{stage.word}"

    def read_json(self, path: Path) -> Any:
        """The content of a JSON file of the run, None if there is no such file."""
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged ({error}).") from None

    def write_json(self, path: Path, content: Any) -> None:
        """Write a JSON file whole or not at all. A number that is none (NaN) is refused: readers would choke."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def done_rows(self, recipe: Recipe) -> list[dict[str, Any]]:
        """The content of done.json of each finished stage, up to the first that is not."""
        rows: list[dict[str, Any]] = []
        for index, stage in enumerate(recipe.stages):
            done = self.read_json(self.stage(index, stage) / "done.json")
            if done is None:
                break
            if not isinstance(done, dict) or not {"row", "outlook"} <= set(done):
                path = self.stage(index, stage) / "done.json"
                raise RunFolderError(f"{path} is damaged: delete it, and the stage is done again.")
            rows.append(done)
        return rows

    def last_checkpoint(self, recipe: Recipe, finished: int) -> Path | None:
        """The newest checkpoint among the first `finished` stages, or that of the start; None if fresh.

        Raises RunFolderError if the last of them that changed the model has lost its checkpoint.
        """
        for index in range(finished - 1, -1, -1):
            stage = recipe.stages[index]
            path = self.stage(index, stage) / "model.safetensors"
            if path.is_file():
                return path
            if stage.changes_model:
                raise RunFolderError(
                    f"{path} is missing: delete {path.parent.name} and what follows it, and resume; they are done "
                    "again."
                )
        start = self.path / "start" / "model.safetensors"
        return start if start.is_file() else None

    def keep(self, kept: Mapping[str, object]) -> None:
        """Write what was kept and is not written yet. Raises RunFolderError for a name that is none."""
        for name, thing in kept.items():
            if not re.fullmatch(KEPT_NAME, name):
                raise RunFolderError(
                    f'"{name}" is no name to keep something under: use letters, digits, _ and -.'
                )
            if self._kept.get(name) is thing:
                continue
            # What is new to this process but there already was loaded from there.
            new = name in self._kept
            self._kept[name] = thing
            if isinstance(thing, nn.Module):
                path = self.path / "kept" / f"{name}.safetensors"
                if new or not path.exists():
                    checkpoint.save(thing, path)
            else:
                path = self.path / "kept" / f"{name}.yaml"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_schedule(thing, path)  # type: ignore[arg-type]

    def kept_schedules(self) -> dict[str, AnySchedule | PolicySchedule]:
        """The schedules that were kept, by name."""
        return {path.stem: read_schedule(path) for path in sorted((self.path / "kept").glob("*.yaml"))}

    def kept_models(self) -> dict[str, Path]:
        """The checkpoints of the models that were kept, by name."""
        return {path.stem: path for path in sorted((self.path / "kept").glob("*.safetensors"))}


def outlook_to_json(outlook: Outlook) -> dict[str, Any]:
    """For done.json: `--from` foresees on from it."""
    return asdict(outlook)


def outlook_from_json(content: Mapping[str, Any]) -> Outlook:
    """The inverse; files of an earlier run are no obstacle for a new one."""
    return Outlook(**{**content, "files": ()})


def new_folder(name: str, out: Path | None) -> RunFolder:
    """The folder of a new run: `out` if it is new or empty, else runs/NAME, or runs/NAME-2 where that exists.

    Raises RunFolderError if `out` holds anything: nothing that is there is overwritten.
    """
    if out is not None:
        if out.is_file() or (out.is_dir() and not all(map(_left_by_a_kill, out.iterdir()))):
            raise RunFolderError(
                f"{out} is not empty: go on with the run in it by --resume, or choose another --out."
            )
        return RunFolder(out)
    base, number = Path("runs") / _file_name(name), 1
    path = base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return RunFolder(path)


def _left_by_a_kill(path: Path) -> bool:
    """What a run writes before its recipe.yaml: of no worth to anybody if it was stopped there."""
    return path.name in ("start", "kept") or path.name.endswith(".part")


def make_writable(folder: RunFolder) -> RunFolder:
    """Create the folder, or raise RunFolderError that says why nothing can be written there."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder.path, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    if reason:
        raise RunFolderError(f"{folder.path} cannot be written to ({reason}): choose another --out.")
    return folder


def found_folder(name: str, out: Path | None) -> RunFolder:
    """The folder of the run to go on with: `out`, or the newest runs/NAME or runs/NAME-2, ....

    Raises RunFolderError if there is none.
    """
    if out is not None:
        if not (out / "recipe.yaml").is_file():
            raise RunFolderError(
                f"{out} holds no run (no recipe.yaml): leave out --resume to start one there."
            )
        return RunFolder(out)
    base = _file_name(name)
    pattern = re.compile(re.escape(base) + r"(-\d+)?")
    runs = [p.parent for p in Path("runs").glob("*/recipe.yaml") if pattern.fullmatch(p.parent.name)]
    if not runs:
        raise RunFolderError(
            f"There is no run {Path('runs') / base} to resume: leave out --resume to start one."
        )
    return RunFolder(max(runs, key=lambda path: (path / "recipe.yaml").stat().st_mtime))


def check_resumable(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Whether a run can go on with this recipe: all but stages that have not begun must be what it was started with.

    Returns a line for each later stage that is another one now, or was dropped; none if the recipe is the same.
    Raises RunFolderError that names the first difference in what is settled, and how to go on.
    """
    path = folder.path / "recipe.yaml"
    # Named by the process: several runs may begin like this one at the same time.
    temporary = path.with_name(f".recipe.compare.{os.getpid()}.yaml")
    try:
        recipe.save(temporary)
        there, here = read_yaml(path).data, read_yaml(temporary).data
    finally:
        temporary.unlink(missing_ok=True)
    old, new = there.pop("stages"), here.pop("stages")
    begun = _begun(folder)
    difference = _first_difference(there, here, ()) or _first_difference(
        old[:begun], new[:begun], ("stages",)
    )
    if difference:
        key, was, now = difference
        again = ""
        if key[0] == "stages" and begun:
            number = key[1] if len(key) > 1 else len(new)
            stage = next(folder.path.glob(f"{number:02d}-*")).name
            again = f" To do that stage again with what is here, delete {stage} and every later stage's folder first."
        raise RunFolderError(
            f"{folder.path} is a run of another recipe: {dotted(key)} is {was!r} there and {now!r} here. "
            f"Resume with the same recipe and options, or start a new run with another --out.{again}"
        )
    lines = []
    for number, (was, now) in enumerate(zip_longest(old[begun:], new[begun:]), start=begun):
        if was != now:
            words = _named(was), _named(now)
            other = f"is {words[1]} now, not {words[0]}"
            change = f"has other values now: {words[0]}" if words[0] == words[1] else other
            lines.append(f"stage {number} had not begun and {change}")
    return lines


def _begun(folder: RunFolder) -> int:
    """How many stages, from the first on, have left anything in the folder: they are done or under way."""
    number = 0
    while any(folder.path.glob(f"{number:02d}-*")):
        number += 1
    return number


def _named(stage: dict[str, Any] | None) -> str:
    return "nothing" if stage is None else next(iter(stage))


def _first_difference(old: Any, new: Any, key: Key) -> tuple[Key, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            found = _first_difference(old.get(name), new.get(name), (*key, name))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            found = _first_difference(one, other, (*key, number))
            if found:
                return found
        lengths = (key, f"a list of {len(old)}", f"a list of {len(new)}")
        return None if len(old) == len(new) else lengths
    return None if old == new and type(old) is type(new) else (key, old, new)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
