"""A study file read: its preset applied, every variant's recipe built and checked, and each run given its hash."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress_aug.errors import RecipeError, nearest
from compress_aug.folders import shipped
from compress_aug.reading import Document, Key, read_yaml, sentences
from compress_aug.recipe import STUDY_SUFFIX, Recipe, find_recipe, recipe_of, set_value, with_choices
from compress_aug.recipe.build import VERSION, fill, names_in
from compress_aug.stages import Search, Stage, Train
from compress_aug.stages.sweep import trainings
from compress_aug.study.words import Preset, RunOf, StudyFile, Variant

# Where a recipe names the run of another variant: no folder of this name exists, it is replaced when its turn comes.
_RUN = "./.run-of/"
_BASES = ("name", "folder", "call")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    recipe: as plain data, unrolled; a path that begins with `run_path(variant)` stands for that variant's run
    hash:   of all that decides its result: the recipe, its model, data and seed, and the files that these name
    after:  variants whose runs with this seed must be finished first
    epochs: of each stage, all trainings of a search together
    shareable: how many of its first stages depend on nothing that comes behind them
    """

    variant: str
    seed: int
    recipe: dict[str, Any]
    hash: str
    after: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    shareable: int = 0

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.variant}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study as it is to be run: one preset of it, and the runs that it consists of.

    name:    what its results are filed under: the file's name without its endings
    source:  the file as it was asked for, a shipped name or a path
    runs:    variant by variant within each seed, so that the first seed is whole before the next begins
    """

    name: str
    source: str
    file: StudyFile
    preset: str
    note: str | None
    runs: tuple[PlannedRun, ...]


def run_path(variant: str, file: str | None = None) -> str:
    """What a recipe of a study calls the folder of another variant's run, or a file in it."""
    return f"{_RUN}{variant}" + (f"/{file}" if file else "")


def study_names() -> list[str]:
    """The names of all shipped studies, such as paper/fig3_decay."""
    folder = shipped("recipes")
    files = folder.rglob(f"*{STUDY_SUFFIX}")
    return sorted(str(path.relative_to(folder)).removesuffix(STUDY_SUFFIX) for path in files)


def find_study(source: str | Path) -> Path:
    """The file of a study given by path or by its shipped name. Raises RecipeError with the nearest name."""
    path = Path(source)
    if path.is_file():
        return path
    folder = shipped("recipes")
    inside = folder / f"{source}{STUDY_SUFFIX}"
    if inside.is_file() and inside.resolve().is_relative_to(folder.resolve()):
        return inside
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"There is no study file {path}.")
    names = study_names()
    whole = [name for name in names if name.rpartition("/")[2] == str(source)]
    hint = f'did you mean "{whole[0]}"?' if whole else nearest(str(source), names)
    raise RecipeError(f'There is no study "{source}", shipped or as a file: {hint}')


def read_study_file(source: str | Path, overrides: Iterable[str] = ()) -> tuple[StudyFile, Document]:
    """A study file in its types, and the document with the line of each key. Raises RecipeError with all problems."""
    document = read_yaml(find_study(source))
    for override in overrides:
        set_value(document, override)
    if not isinstance(document.data, dict) or "study" not in document.data:
        raise RecipeError(
            f"{document.name}: expected a study (study: 1, variants, ...); a recipe is run by `compress-aug run`."
        )
    try:
        file = StudyFile.model_validate(document.data)
    except ValidationError as error:
        told = [f"{document.where(key)}: {sentence}" for key, sentence in sentences(error, StudyFile)]
        raise RecipeError(list(dict.fromkeys(told))) from None
    problems = [f"{document.where(key)}: {sentence}" for key, sentence in _names_that_are_none(file)]
    if problems:
        raise RecipeError(problems)
    return file, document


def _names_that_are_none(file: StudyFile) -> list[tuple[Key, str]]:
    """Variants that are named and are not there."""
    known = list(file.variants)
    named: list[tuple[Key, str]] = []
    for number, claim in enumerate(file.claims):
        named += [(("claims", number, "better"), claim.better)] if claim.better else []
        named += [(("claims", number, "than"), other) for other in claim.than]
    for name, preset in file.presets.items():
        named += [(("presets", name, "variants", other), other) for other in preset.variants]
        named += [(("presets", name, "only"), other) for other in preset.only or ()]
    return [
        (key, f'there is no variant "{name}": {nearest(name, known)}')
        for key, name in named
        if name not in known
    ]


def load_study(
    source: str | Path,
    *,
    preset: str | None = None,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    model: Any = None,
    data: Any = None,
    overrides: Iterable[str] = (),
) -> Study:
    """Read a study and build every run of it, with all checks that need no model and no data.

    source: a path, or the name of a shipped study such as "paper/fig3_decay"
    preset: one of the file's; the file's own values if it has none
    seeds, model, data: instead of what the file says; data keeps the preset's numbers of images
    only:   names of variants, and what these wait for
    overrides: "seeds=[0]", applied to the file

    Raises RecipeError that lists all problems, each with file, line and key.

    >>> study = load_study("paper/fig3_decay", preset="micro")
    >>> len(study.runs) == len({run.hash for run in study.runs})
    True
    """
    file, document = read_study_file(source, overrides)
    chosen = _preset(file, preset, document)
    reader = _Reader(file, chosen, document, model=model, data=data)
    wanted = reader.wanted(only)
    name = Path(document.name).name.removesuffix(".yaml").removesuffix(".study")
    runs: list[PlannedRun] = []
    for seed in seeds if seeds is not None else chosen.seeds if chosen.seeds is not None else file.seeds:
        built = {variant: reader.run(variant, seed) for variant in wanted}
        runs += _with_hashes(built)
    return Study(name, str(source), file, preset or "own", chosen.note, tuple(runs))


def _preset(file: StudyFile, name: str | None, document: Document) -> Preset:
    if name is None or (name == "own" and name not in file.presets):
        return Preset()
    if name not in file.presets:
        known = list(file.presets)
        hint = nearest(name, known) if known else "it has none"
        raise RecipeError(f'{document.name}: there is no preset "{name}": {hint}')
    return file.presets[name]


class _Reader:
    """Builds the recipes of a study's variants."""

    def __init__(self, file: StudyFile, preset: Preset, document: Document, *, model: Any, data: Any) -> None:
        self._file, self._preset, self._document = file, preset, document
        self._model = model
        self._data = _data(file.data, preset.data, data)
        unused = self._unused()
        if unused:
            raise RecipeError(unused)

    def wanted(self, only: Sequence[str]) -> list[str]:
        """The variants that run, in the file's order: those that are asked for, and what they wait for."""
        known = list(self._file.variants)
        for name in only:
            if name not in known:
                raise RecipeError(f'--only: there is no variant "{name}": {nearest(name, known)}')
        wanted = set(only or self._preset.only or known)
        while True:
            more = {other for name in wanted for other in self._after(name)} - wanted
            if not more:
                return [name for name in known if name in wanted]
            wanted |= more

    def run(self, name: str, seed: int) -> tuple[Recipe, tuple[str, ...]]:
        """The recipe of a variant with a seed, and the variants that it waits for."""
        variant = self._file.variants[name]
        recipe = self._recipe(name, variant)
        model = self._model or variant.model or self._preset.model or self._file.model
        recipe = with_choices(recipe, model=model, data=self._data, seed=seed)
        recipe = replace(recipe, name=name)
        try:
            recipe.foresee()
        except RecipeError as error:
            # What waits for another run cannot be looked into yet; it is checked again when its turn comes.
            problems = [problem for problem in error.problems if _RUN not in problem]
            if problems:
                raise RecipeError([f"variant {name}: {problem}" for problem in problems]) from None
        return recipe, tuple(self._after(name))

    def _recipe(self, name: str, variant: Variant) -> Recipe:
        key, given = self._recipe_of(name, variant)
        values = self._variables(name, variant)
        if isinstance(given, str):
            path = find_recipe(given)
            document = read_yaml(path)
        elif given is None:
            where = self._document.where(("variants", name))
            raise RecipeError(f"{where}: no recipe is given, neither here nor for the whole study")
        else:
            path = Path(self._document.name)
            document = _part(self._document, key, {"version": VERSION, **given})
        if isinstance(document.data, dict):
            own = document.data.get("variables") or {}
            used = names_in([document.data.get("stages"), document.data.get("defaults")]) | set(own)
            taken = {**own, **{key: value for key, value in values.items() if key in used}}
            document.data = {**document.data, **({"variables": taken} if taken else {})}
        try:
            return recipe_of(document, name=name, beside=path.parent)
        except RecipeError as error:
            raise RecipeError([f"variant {name}: {problem}" for problem in error.problems]) from None

    def _recipe_of(self, name: str, variant: Variant) -> tuple[Key, str | dict[str, Any] | None]:
        if variant.recipe is not None:
            return ("variants", name, "recipe"), variant.recipe
        return ("recipe",), self._file.recipe

    def _given(self, name: str, variant: Variant) -> dict[str, Any]:
        """The variables of a variant as they are written: the study's, the preset's, its own, the preset's of it."""
        own = self._preset.variants.get(name, {})
        return {**self._file.variables, **self._preset.variables, **variant.variables, **own}

    def _variables(self, name: str, variant: Variant) -> dict[str, Any]:
        values = {}
        for key, value in self._given(name, variant).items():
            other = _run_of(value)
            values[key] = run_path(other.run, other.file) if other else value
        # A value may use other variables itself; what has none is told as part of the recipe.
        return {key: fill(value, values)[0] for key, value in values.items()}

    def _after(self, name: str) -> list[str]:
        variant, known = self._file.variants[name], list(self._file.variants)
        after = []
        for key, value in self._given(name, variant).items():
            other = _run_of(value)
            if other is None:
                continue
            where = self._document.where(("variants", name, "variables", key))
            if other.run not in known:
                raise RecipeError(f'{where}: there is no variant "{other.run}": {nearest(other.run, known)}')
            if other.run == name:
                raise RecipeError(f"{where}: a variant cannot wait for its own run")
            after.append(other.run)
        return list(dict.fromkeys(after))

    def _unused(self) -> list[str]:
        """Variables that no recipe of the study uses: a misspelt name would change nothing and be believed."""
        used: set[str] = set()
        for name, variant in self._file.variants.items():
            _, given = self._recipe_of(name, variant)
            content = read_yaml(find_recipe(given)).data if isinstance(given, str) else given
            content = content if isinstance(content, dict) else {}
            used |= names_in([content.get("stages"), content.get("defaults")])
            used |= set(content.get("variables") or {}) | names_in(list(self._given(name, variant).values()))
        places: list[tuple[Key, Iterable[str]]] = [(("variables",), self._file.variables)]
        for name, preset in self._file.presets.items():
            places.append((("presets", name, "variables"), preset.variables))
            places += [
                (("presets", name, "variants", variant), given) for variant, given in preset.variants.items()
            ]
        places += [(("variants", name, "variables"), v.variables) for name, v in self._file.variants.items()]
        return [
            f"{self._document.where((*key, name))}: no recipe of this study uses ${name}"
            + (f": {nearest(name, sorted(used))}" if used else "")
            for key, names in places
            for name in names
            if name not in used
        ]


def _run_of(value: Any) -> RunOf | None:
    """The other variant's run that the value of a variable stands for, if it is of the form {run: name}."""
    if not isinstance(value, dict) or "run" not in value or not set(value) <= {"run", "file"}:
        return None
    try:
        return RunOf.model_validate(value)
    except ValidationError:
        return None


def _part(document: Document, key: Key, content: Any) -> Document:
    """A part of a document as a document of its own, with the lines of the whole."""
    lines = {place[len(key) :]: line for place, line in document.lines.items() if place[: len(key)] == key}
    return Document(document.name, content, lines)


def _data(own: Any, of_preset: Any, chosen: Any) -> Any:
    """What the study works on: a preset without a name (only numbers of images, say) adds to the study's.

    What is chosen on the command line replaces the images, and the rest stays.
    """
    merged: dict[str, Any] = {}
    for given in (own, of_preset, chosen):
        if given is None:
            continue
        keys = {"name": given} if isinstance(given, str) else dict(given)
        if any(base in keys for base in _BASES):
            merged = {key: value for key, value in merged.items() if key not in _BASES}
        merged |= keys
    return merged


def _with_hashes(built: Mapping[str, tuple[Recipe, tuple[str, ...]]]) -> list[PlannedRun]:
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
        hashes = {other: done[other].hash for other in after}
        ahead = [number for number, stage in enumerate(recipe.stages) if stage.looks_ahead]
        done[name] = PlannedRun(
            name,
            recipe.seed,
            recipe.resolved(),
            _hash(recipe, hashes),
            after,
            tuple(map(_epochs, recipe.stages)),
            min(ahead, default=len(recipe.stages)),
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


def _hash(recipe: Recipe, runs: Mapping[str, str]) -> str:
    """Of everything that decides the result, and nothing that does not: not the name, not where a folder lies."""
    contents: dict[str, str] = {}

    def content(name: str) -> str:
        if name.startswith(_RUN):
            return name
        contents[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        return f"file:{contents[name]}"

    said = recipe.with_files(content).resolved()
    del said["name"]
    if isinstance(said["data"], dict) and "folder" in said["data"]:
        said["data"] = {**said["data"], "folder": Path(said["data"]["folder"]).resolve().name}
    text = json.dumps(said, sort_keys=True)
    for name, value in runs.items():
        text = re.sub(re.escape(_RUN + name) + r"(?=[/\"])", f"run:{value}", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def at_place(recipe: Mapping[str, Any], folder_of: Callable[[str], Path]) -> dict[str, Any]:
    """The recipe with the runs that it names where they lie now. folder_of: the folder of a variant's run."""

    def placed(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_RUN):
            variant, _, rest = value.removeprefix(_RUN).partition("/")
            return str(folder_of(variant) / rest)
        if isinstance(value, dict):
            return {key: placed(inner) for key, inner in value.items()}
        return [placed(inner) for inner in value] if isinstance(value, list) else value

    return {key: placed(value) for key, value in recipe.items()}
