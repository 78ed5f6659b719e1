"""A study file read: its preset applied, every variant's recipe built and checked, the place of each mistake told."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress_aug.errors import RecipeError, nearest
from compress_aug.folders import shipped
from compress_aug.reading import Document, Key, read_yaml, sentences
from compress_aug.recipe import (
    STUDY_SUFFIX,
    Recipe,
    find_recipe,
    found_file,
    recipe_of,
    set_value,
    with_choices,
)
from compress_aug.recipe.build import VERSION, fill, names_in
from compress_aug.study.planned import PlannedRun, names_a_run, planned_runs, run_path
from compress_aug.study.words import Preset, RunOf, StudyFile, Variant

_BASES = ("name", "folder", "call")


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


def study_names() -> list[str]:
    """The names of all shipped studies, such as paper/fig3_decay."""
    folder = shipped("recipes")
    files = folder.rglob(f"*{STUDY_SUFFIX}")
    return sorted(str(path.relative_to(folder)).removesuffix(STUDY_SUFFIX) for path in files)


def find_study(source: str | Path) -> Path:
    """The file of a study given by path or by its shipped name. Raises RecipeError with the nearest name."""
    found = found_file(source, STUDY_SUFFIX, "study")
    if found is not None:
        return found
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
    if bad := [seed for seed in seeds or () if not 0 <= seed < 2**63]:
        raise RecipeError(f"seeds: expected whole numbers in 0..2^63-1, found {bad[0]}")
    file, document = read_study_file(source, overrides)
    chosen = _preset(file, preset, document)
    reader = _Reader(file, chosen, document, model=model, data=data)
    wanted = reader.wanted(only)
    name = re.sub(r"(\.study)?\.ya?ml$", "", Path(document.name).name)
    runs: list[PlannedRun] = []
    for seed in seeds if seeds is not None else chosen.seeds or file.seeds:
        built = {variant: reader.run(variant, seed) for variant in wanted}
        runs += planned_runs(built)
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
        self._read: dict[str, Document] = {}
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
            problems = [problem for problem in error.problems if not names_a_run(problem)]
            if problems:
                raise RecipeError([f"variant {name}: {problem}" for problem in problems]) from None
        return recipe, tuple(self._after(name))

    def _recipe(self, name: str, variant: Variant) -> Recipe:
        document = self._document_of(name, variant)
        if isinstance(document.data, dict) and isinstance(own := document.data.get("variables") or {}, dict):
            used, values = self._used(name, variant), self._variables(name, variant)
            taken = {**own, **{key: value for key, value in values.items() if key in used}}
            data = {**document.data, **({"variables": taken} if taken else {})}
            document = replace(document, data=data)
        try:
            return recipe_of(document, name=name, beside=Path(document.name).parent)
        except RecipeError as error:
            raise RecipeError([f"variant {name}: {problem}" for problem in error.problems]) from None

    def _document_of(self, name: str, variant: Variant) -> Document:
        """The recipe of a variant as it is written: its own or the study's, here or in another file."""
        key: Key = ("variants", name, "recipe") if variant.recipe is not None else ("recipe",)
        given = self._file.recipe if variant.recipe is None else variant.recipe
        if given is None:
            where = self._document.where(("variants", name))
            raise RecipeError(f"{where}: no recipe is given, neither here nor for the whole study")
        if not isinstance(given, str):
            return _part(self._document, key, {"version": VERSION, **given})
        if given not in self._read:
            beside = Path(self._document.name).parent / given
            try:
                self._read[given] = read_yaml(beside if beside.is_file() else find_recipe(given))
            except RecipeError as error:
                where = self._document.where(key)
                raise RecipeError([f"{where}: {problem}" for problem in error.problems]) from None
        return self._read[given]

    def _used(self, name: str, variant: Variant) -> set[str]:
        """The $names in the recipe of a variant."""
        content = self._document_of(name, variant).data
        content = content if isinstance(content, dict) else {}
        own = content.get("variables")
        used = names_in([content.get("stages"), content.get("defaults")])
        return used | (set(own) if isinstance(own, dict) else set())

    def _given(self, name: str, variant: Variant) -> dict[str, Any]:
        """The variables of a variant as they are written: the study's, the preset's, its own, the preset's of it."""
        own = self._preset.variants.get(name, {})
        return {**self._file.variables, **self._preset.variables, **variant.variables, **own}

    def _variables(self, name: str, variant: Variant) -> dict[str, Any]:
        values = {}
        for key, value in self._given(name, variant).items():
            other = self._run_of(name, key, value)
            values[key] = run_path(other.run, other.file) if other else value
        # A value may use other variables itself; what has none is told as part of the recipe.
        return {key: fill(value, values)[0] for key, value in values.items()}

    def _after(self, name: str) -> list[str]:
        variant, after = self._file.variants[name], []
        used, given = self._used(name, variant), self._given(name, variant)
        used |= names_in([value for key, value in given.items() if key in used])
        for key, value in given.items():
            other = self._run_of(name, key, value)
            if other is None or key not in used:
                continue
            if other.run == name:
                where = self._document.where(("variants", name, "variables", key))
                raise RecipeError(f"{where}: a variant cannot wait for its own run")
            after.append(other.run)
        return list(dict.fromkeys(after))

    def _run_of(self, name: str, key: str, value: Any) -> RunOf | None:
        """The other variant's run that the value of a variable stands for, if it is of the form {run: name}."""
        if not isinstance(value, dict) or "run" not in value:
            return None
        own = key in self._file.variants[name].variables
        place: Key = ("variants", name, "variables", key) if own else ("variables", key)
        try:
            other = RunOf.model_validate(value)
        except ValidationError as error:
            told = [(self._document.where((*place, *at)), said) for at, said in sentences(error, RunOf)]
            raise RecipeError([f"{where}: {said}" for where, said in told]) from None
        if other.run not in self._file.variants:
            hint = nearest(other.run, list(self._file.variants))
            raise RecipeError(f'{self._document.where(place)}: there is no variant "{other.run}": {hint}')
        return other

    def _unused(self) -> list[str]:
        """Variables that no recipe of the study uses: a misspelt name would change nothing and be believed."""
        used: set[str] = set()
        for name, variant in self._file.variants.items():
            used |= self._used(name, variant) | names_in(list(self._given(name, variant).values()))
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
