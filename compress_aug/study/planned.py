"""The runs that a study consists of: unrolled, each with the hash of what decides its result, and what it waits for."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_aug.errors import RecipeError
from compress_aug.recipe import Recipe
from compress_aug.running.share import shareable
from compress_aug.stages import Search, Stage, Train
from compress_aug.stages.sweep import trainings
from compress_aug.targets import target_names

# Where a recipe names the run of another variant: no folder of this name exists, it is replaced when its turn comes.
_RUN = "./.run-of/"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    recipe: as plain data, unrolled; a path that begins with `run_path(variant)` stands for that variant's run
    settled: the same with the contents of files and the hashes of runs instead of their paths: what it does
    hash:   of all that decides its result: the recipe, its model, data and seed, and the files that these name
    configuration: the same of all but the seed
    after:  variants whose runs with this seed must be finished first
    epochs: of each stage, all trainings of a search together
    shareable: how many of its first stages depend on nothing that comes behind them
    """

    variant: str
    seed: int
    recipe: dict[str, Any]
    settled: dict[str, Any]
    hash: str
    configuration: str
    after: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    shareable: int = 0

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.variant}-{self.seed}"


def run_path(variant: str, file: str | None = None) -> str:
    """What a recipe of a study calls the folder of another variant's run, or a file in it."""
    return f"{_RUN}{variant}" + (f"/{file}" if file else "")


def names_a_run(text: str) -> bool:
    """Whether a text, such as an error's, speaks of another variant's run, which may not be there yet."""
    return _RUN in text


def planned_runs(built: Mapping[str, tuple[Recipe, tuple[str, ...]]]) -> list[PlannedRun]:
    """The runs of one seed, in an order in which each comes behind those that it waits for."""
    done: dict[str, PlannedRun] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in done:
            return
        if name in path:
            raise RecipeError(f"these variants wait for each other: {', '.join((*path, name))}")
        recipe, after = built[name]
        for other in after:
            add(other, (*path, name))
        settled = _settled(recipe, {other: done[other].hash for other in after})
        of_any_seed = _settled(recipe, {other: done[other].configuration for other in after})
        done[name] = PlannedRun(
            name,
            recipe.seed,
            recipe.resolved(),
            settled,
            _hash(settled),
            _hash({**of_any_seed, "seed": None}),
            after,
            tuple(map(_epochs, recipe.stages)),
            shareable(recipe.stages),
        )

    for name in built:
        add(name, ())
    return list(done.values())


def _epochs(stage: Stage) -> int:
    if isinstance(stage, Train):
        return stage.epochs
    if not isinstance(stage, Search):
        return 0
    return stage.train.epochs * (stage.population or trainings(stage))


def _settled(recipe: Recipe, runs: Mapping[str, str]) -> dict[str, Any]:
    """A recipe as what it does: with the contents of its files, and what was made in the runs that it names.

    runs: variant -> the hash of its run
    """

    def content(name: str) -> str:
        if name.startswith(_RUN):
            return name
        try:
            return f"file:{hashlib.sha256(Path(name).read_bytes()).hexdigest()}"
        except OSError as error:
            raise RecipeError(f"variant {recipe.name}: {name} cannot be read ({error.strerror}).") from None

    said = recipe.with_files(content).resolved()
    del said["name"]
    if recipe.target not in target_names():
        said["target"] = content(recipe.target)

    def made_in(variant: str, rest: str) -> str:
        if variant not in runs:
            raise RecipeError(
                f"variant {recipe.name}: {_RUN}{variant} is no path: give a variable the value {{run: {variant}}}"
            )
        return f"run:{runs[variant]}" + (f"/{rest}" if rest else "")

    return _with_runs(said, made_in)


def _hash(settled: Mapping[str, Any]) -> str:
    """Of everything that decides the result, and nothing that does not: not where a folder of images lies."""
    data = settled["data"]
    if isinstance(data, dict) and "folder" in data:
        data = {**data, "folder": Path(str(data["folder"])).resolve().name}
    text = json.dumps({**settled, "data": data}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def at_place(recipe: Mapping[str, Any], folder_of: Callable[[str], Path]) -> dict[str, Any]:
    """The recipe with the runs that it names where they lie now. folder_of: the folder of a variant's run."""
    return _with_runs(recipe, lambda variant, rest: str(folder_of(variant) / rest))


def runs_in(recipe: Mapping[str, Any]) -> set[str]:
    """The variants whose runs a recipe names."""
    found: set[str] = set()

    def seen(variant: str, rest: str) -> str:
        found.add(variant)
        return rest

    _with_runs(recipe, seen)
    return found


def _with_runs(recipe: Mapping[str, Any], put: Callable[[str, str], str]) -> dict[str, Any]:
    """Plain data with something else for each path to another variant's run. put: (variant, rest of the path) -> it"""

    def filled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_RUN):
            variant, _, rest = value.removeprefix(_RUN).partition("/")
            return put(variant, rest)
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    return {key: filled(value) for key, value in recipe.items()}
