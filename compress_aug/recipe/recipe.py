"""A recipe: stages in order and what they work on; found, read, overridden, foreseen, planned and saved."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from compress_aug.errors import RecipeError, nearest
from compress_aug.folders import shipped
from compress_aug.reading import Document, dotted, plain_scalar, read_yaml
from compress_aug.recipe.build import VERSION, Build
from compress_aug.schedule import falls
from compress_aug.stages import STAGES, Model, Outlook, Quantize, Search, Stage, Train
from compress_aug.stages.base import percent
from compress_aug.stages.saturation import has_8_bit_weights, said
from compress_aug.stages.unsigned import has_8_bit_activations
from compress_aug.stages.unsigned import said as unsigned_said
from compress_aug.targets import load_target

# Measured on ResNet20 at 4 bits (docs/stages.md): without batch norms it bears 0.003 and falls to chance at 0.01; with
# them it bears 0.01, and a smaller net 0.02 but not 0.1.
QAT_LR = {"fold": 0.005, "keep": 0.02}

# Studies ship among the recipes that they run.
STUDY_SUFFIX = ".study.yaml"


@dataclass(frozen=True)
class Recipe:
    """An ordered list of stages and what they work on.

    stages: the unrolled list
    model, data: as in YAML (see `compress_aug.models.load_model`, `compress_aug.data.load_data`), or objects, or None
                 if they are given when it runs
    target: a shipped device or the path of a YAML file that describes one
    places: for messages: where each stage stands, "my.yaml, line 12, stages.3"
    notes:  what was left out, and why; the first of its warnings

    Searches that are wanted `only_if_used` are settled here, wherever the stages come from: one that no later stage
    uses is left out, one that stays is an ordinary stage of the recipe.

    >>> Recipe([Train(epochs=1), Prune(sparsity=0.4)], model="resnet8", data="digits").plan()[1]["sparsity"]
    '40 %'
    """

    stages: Sequence[Stage]
    model: Any = None
    data: Any = None
    seed: int = 0
    target: str = "host_cpu"
    name: str = "recipe"
    places: Sequence[str] = field(default=(), compare=False)
    notes: Sequence[str] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        stages, places, notes = list(self.stages), list(self.places), list(self.notes)
        for number, stage in reversed(list(enumerate(stages))):
            if not isinstance(stage, Search) or stage.only_if_used is None:
                continue
            if not stage.only_if_used or stage.is_used(stages[number + 1 :]):
                stages[number] = stage.model_copy(update={"only_if_used": None})
                continue
            notes.append(f"{stage.title()} is left out: no later stage uses {stage.keep} (only_if_used)")
            del stages[number], places[number : number + 1]
        if stages != list(self.stages):
            for name, value in (("stages", stages), ("places", places), ("notes", notes)):
                object.__setattr__(self, name, tuple(value))

    def foresee(self, start: Outlook = Outlook()) -> list[Outlook]:
        """What will be known after each stage. Raises RecipeError with every stage that cannot follow."""
        if not self.stages:
            raise RecipeError([f"{self.name}: stages is empty; a recipe needs at least one", *self.notes])
        outlooks, problems = [], []
        # Of this recipe's target, not of the one that the start was made for.
        target = load_target(self.target)
        outlook = replace(start, int8_saturates=target.int8_saturates, signed_only=target.signed_only)
        for number, stage in enumerate(self.stages):
            try:
                outlook = stage.foresee(outlook)
            except RecipeError as error:
                place = self.places[number] if self.places else f"stages.{number}.{stage.word}"
                problems += [f"{place}: {problem}" for problem in error.problems]
            outlooks.append(outlook)
        if problems:
            raise RecipeError(list(dict.fromkeys(problems)))
        return outlooks

    def with_files(self, place: Callable[[str], str]) -> "Recipe":
        """The same recipe with each file that its stages name found elsewhere; see `Stage.with_files`."""
        return replace(self, stages=tuple(stage.with_files(place) for stage in self.stages))

    def plan(self, start: Outlook = Outlook()) -> list[dict[str, str]]:
        """The timeline, a row of short texts per stage: stage, epochs, lr, magnitude, sparsity, bits, objective."""
        rows = []
        for stage, outlook in zip(self.stages, self.foresee(start), strict=True):
            weights = " auto" if outlook.auto_bits else outlook.weight_bits
            bits = f"w{weights} a{outlook.activation_bits}" if outlook.quantized else "float"
            row = {"epochs": "", "lr": "", "magnitude": "", "objective": "", **stage.plan()}
            extra = f", {outlook.attached} blocks attached" if outlook.attached else ""
            rows.append(
                {
                    "stage": stage.title(),
                    "epochs": row["epochs"],
                    "lr": row["lr"],
                    "magnitude": row["magnitude"],
                    "sparsity": percent(outlook.sparsity) + extra,
                    "bits": bits,
                    "objective": row["objective"],
                }
            )
        return rows

    def warnings(self) -> list[str]:
        """What others learned too late: one sentence for each thing that is legal but rarely wanted."""
        words = [stage.word for stage in self.stages]
        found = list(self.notes)
        if "prune" in words and "prune_channels" not in words and "quantize" not in words:
            found.append(
                "zeros from `prune` make a file that packs smaller, not one that runs faster on ONNX Runtime; "
                "`prune_channels` and `quantize` do"
            )
        target = load_target(self.target)
        quantizing = [stage for stage in self.stages if isinstance(stage, Quantize)]
        folded = any(stage.batch_norm == "fold" for stage in quantizing)
        most = QAT_LR["fold" if folded else "keep"]
        fast = [s.lr for s in _on_quantized(self.stages) if s.optimizer == "sgd" and s.lr > most]
        if fast:
            norms = "no batch norms are left by then" if folded else "its scales are learned as well"
            instead = "take 0.001 to 0.003, or batch_norm: keep" if folded else "take 0.01 or less"
            found.append(
                f"a `train` after `quantize` begins at lr {max(fast):g}; {norms}, and sgd above {most:g} often ends at "
                f"chance, at few bits above all: {instead}"
            )
        if target.int8_saturates and any(map(has_8_bit_weights, quantizing)):
            found.append(said(target.name))
        if target.signed_only and any(map(has_8_bit_activations, quantizing)):
            found.append(unsigned_said(target.name))
        augments = [s.augment for s in self.stages if isinstance(s, Train)]
        # Of magnitudes that are drawn, weak ones may be chosen: how strong they are is not known.
        levels = [augment.magnitude for augment in augments if not augment.random_magnitude]
        constant = [level for level in levels if isinstance(level, float)]
        if len(constant) == len(levels) and not falls(constant):
            found.append(
                "the magnitude rises from one `train` to a later one, while smaller models bear less"
            )
        return found

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data: unrolled, defaults merged, overrides applied. Objects become null."""
        return {
            "version": VERSION,
            "name": self.name,
            "model": _plain_or_none(self.model),
            "data": _plain_or_none(self.data),
            "seed": self.seed,
            "target": self.target,
            "stages": [
                {_word(stage): stage.model_dump(mode="python", exclude_none=True)} for stage in self.stages
            ],
        }

    def save(self, path: Path) -> None:
        """Write `resolved()` as YAML; `load_recipe` reads it back to an equal recipe."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 110
        with path.open("w", encoding="utf-8") as out:
            yaml.dump(self.resolved(), out)


def _on_quantized(stages: Sequence[Stage]) -> list[Train]:
    """Those that train a quantized model: behind `quantize`, up to a `model` that is float again."""
    found, quantized = [], False
    for stage in stages:
        if isinstance(stage, Quantize | Model):
            quantized = isinstance(stage, Quantize)
        elif isinstance(stage, Train) and quantized:
            found.append(stage)
    return found


def load_recipe(source: str | Path, overrides: Iterable[str] = (), start: Outlook = Outlook()) -> Recipe:
    """Read a recipe and check all that can be checked without a model and without data.

    source:    a path, or the name of a shipped recipe such as "quickstart"
    overrides: "stages.0.train.epochs=2", applied to the file before anything is unrolled
    start:     what is known of the model it starts on; a fresh one by default

    Raises RecipeError that lists all problems, each with file, line, key, what was expected and the nearest word.

    >>> load_recipe("quickstart", ["seed=1"]).seed
    1
    """
    path = find_recipe(source)
    document = read_yaml(path)
    for override in overrides:
        set_value(document, override)
    recipe = recipe_of(document, name=Path(str(source)).stem, beside=path.parent)
    recipe.foresee(start)
    return recipe


def recipe_of(document: Document, *, name: str, beside: Path) -> Recipe:
    """The recipe that a document in memory says, not yet foreseen.

    name:   for a recipe that does not say its own
    beside: the folder in which files that it names are looked for first

    Raises RecipeError that lists all problems.

    >>> from compress_aug.reading import parse_yaml
    >>> document = parse_yaml("{version: 1, stages: [{train: {epochs: 2}}]}")
    >>> recipe_of(document, name="mine", beside=Path()).stages[0].epochs
    2
    """
    build = Build(document)
    top = build.read(name)
    if build.problems:
        raise RecipeError(list(dict.fromkeys(build.problems)))
    recipe = Recipe(tuple(build.stages), places=tuple(build.places), **top)
    return recipe.with_files(lambda named: _beside(beside, named))


def _beside(folder: Path, name: str) -> str:
    """A file that a recipe names: beside the recipe if it is there, else as seen from the current folder."""
    beside = folder / name
    return str(beside) if beside.is_file() else name


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe given by path or by its shipped name. Raises RecipeError with the nearest name."""
    found = found_file(source, ".yaml", "recipe")
    if found is not None:
        return found
    raise RecipeError(
        f'There is no recipe "{source}", shipped or as a file: {nearest(str(source), recipe_names())}'
    )


def found_file(source: str | Path, suffix: str, what: str) -> Path | None:
    """The file of that path, or else the shipped one of that name; None if it may be a misspelt name.

    suffix: of shipped files;  what: what it is to be, for the error

    Raises RecipeError for the path of a file that is not there.
    """
    path = Path(source)
    if path.is_file():
        return path
    folder = shipped("recipes")
    inside = folder / f"{source}{suffix}"
    if inside.is_file() and inside.resolve().is_relative_to(folder.resolve()):
        return inside
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"There is no {what} file {path}.")
    return None


def recipe_names() -> list[str]:
    """The names of all shipped recipes, those in subfolders with a slash."""
    folder = shipped("recipes")
    files = (path for path in folder.rglob("*.yaml") if not path.name.endswith(STUDY_SUFFIX))
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in files)


def with_choices(recipe: Recipe, **choices: Any) -> Recipe:
    """The recipe with some of model, data, seed, target replaced; None leaves what the recipe says.

    >>> with_choices(recipe, seed=3, target=None).seed
    3
    """
    return replace(recipe, **{name: value for name, value in choices.items() if value is not None})


def _plain_or_none(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, str | dict) else None


def _word(stage: Stage) -> str:
    kind = type(stage)
    return stage.word if STAGES.get(stage.word) is kind else f"{kind.__module__}:{kind.__qualname__}"


def set_value(document: Document, text: str) -> None:
    """Set one value of the document, as `--set KEY=VALUE` says. Every part of the path but the last must exist.

    Raises RecipeError with the nearest key.
    """
    path, equals, value = text.partition("=")
    parts: list[str | int] = [int(p) if p.isascii() and p.isdecimal() else p for p in path.strip().split(".")]
    if not equals or not path.strip():
        raise RecipeError(f"--set {text}: expected KEY=VALUE, such as --set stages.0.train.epochs=2")
    here = document.data
    for done, part in enumerate(parts):
        last = done == len(parts) - 1
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                known = f"0..{len(here) - 1}" if here else "nothing"
                raise RecipeError(
                    f'--set {text}: "{dotted(parts[:done])}" is a list of {known}, found "{part}"'
                )
        elif not isinstance(here, dict) or (not last and part not in here):
            words = [str(key) for key in here] if isinstance(here, dict) else []
            hint = nearest(str(part), words) if words else "it holds no keys"
            raise RecipeError(
                f'--set {text}: there is no "{dotted(parts[: done + 1])}" in {document.name}: {hint}'
            )
        if last:
            here[part] = plain_scalar(value)
        else:
            here = here[part]
