"""What a run starts from: a fresh model, or the compressed model of a run before, copied so that it stays whole."""

from pathlib import Path
from typing import Any

from torch import nn

from compress_aug import checkpoint
from compress_aug.data import Data
from compress_aug.errors import RecipeError, RunFolderError
from compress_aug.folders import written_whole
from compress_aug.recipe import Recipe, load_recipe, with_choices
from compress_aug.running.folder import RunFolder, found_folder, outlook_from_json, outlook_to_json
from compress_aug.stages import Outlook

Began = tuple[Recipe, Path, Outlook]
"""What a run starts from: the recipe of the run before, the checkpoint, and what is known of that model."""


def prepared(recipe: Recipe | str | Path, began: Began | None, **choices: Any) -> tuple[Recipe, Outlook]:
    """The recipe read, with the choices made for this run, and what is known of the model it starts on.

    Raises RecipeError.
    """
    start = began[2] if began else Outlook()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, start=start)
    recipe = with_choices(recipe, **choices)
    return (_model_of_start(recipe, began[0]) if began else recipe), start


def beginning_of(
    recipe: Recipe | str | Path,
    start_from: str | Path | None,
    *,
    resume: bool = False,
    out: str | Path | None = None,
) -> Began | None:
    """What the run starts from, None for a fresh model.

    A run that is resumed has its own copy, which outlives the run that it was taken from.

    Raises RunFolderError if there is no such run, or if a resumed run did not start from another one.
    """
    if not resume:
        return run_of(RunFolder(Path(start_from))) if start_from is not None else None
    name = recipe.name if isinstance(recipe, Recipe) else Path(str(recipe)).stem
    folder = found_folder(name, Path(out) if out is not None else None)
    begun = folder.read_json(folder.path / "start" / "outlook.json")
    if begun:
        start = outlook_from_json(begun)
        stored = load_recipe(folder.path / "recipe.yaml", start=start)
        return stored, folder.path / "start" / "model.safetensors", start
    if start_from is not None:
        raise RunFolderError(f"{folder.path} did not start from another run: leave out --from to resume it.")
    return None


def check_data_of_start(began: Began, data: Data) -> None:
    """Refuse data that cannot go through the model that the run starts on, before anything is written."""
    about = checkpoint.read_extra(began[1])
    here = {"classes": len(data.classes), "image_shape": list(data.image_shape)}
    for key, value in here.items():
        if about[key] != value:
            raise RunFolderError(
                f"--from: that model was made for {key} {about[key]}, the data has {value}; "
                "give data of the same kind."
            )


def run_of(place: RunFolder) -> tuple[Recipe, Path, Outlook]:
    """The recipe of a run, its newest checkpoint, and what is known of that model.

    Raises RunFolderError if the folder holds no run, or one without a finished stage.
    """
    if not (place.path / "recipe.yaml").is_file():
        raise RunFolderError(f"{place.path} holds no run (there is no recipe.yaml in it).")
    begun = place.read_json(place.path / "start" / "outlook.json")
    start = outlook_from_json(begun) if begun else Outlook()
    recipe = load_recipe(place.path / "recipe.yaml", start=start)
    rows = place.done_rows(recipe)
    last = place.last_checkpoint(recipe, len(rows))
    if last is None and rows:
        kept = sorted((place.path / "kept").glob("*"))
        lies = (
            f" What it kept lies in {place.path / 'kept'}: {', '.join(path.name for path in kept)}."
            if kept
            else ""
        )
        raise RunFolderError(
            f"No stage of {place.path} has changed the model yet: it is the fresh one that the run begins with.{lies} "
            "Leave out --from (or load) and use that model; a recipe may name kept schedules by their files."
        )
    if last is None:
        raise RunFolderError(f"No stage of {place.path} is finished yet, so there is no model in it.")
    return recipe, last, outlook_from_json(rows[-1]["outlook"]) if rows else start


def told(began: Began) -> str:
    """One line that says whose model a run starts on, and that the run before is not finished if it is not."""
    last = began[1]
    folder = RunFolder(last.parent.parent)
    report = folder.read_json(folder.path / "report.json")
    unfinished = (
        "" if report and report["finished"] else "; that run is not finished, its later stages are missing"
    )
    return f"starts on the model of {folder.path} after {last.parent.name}{unfinished}"


def _model_of_start(recipe: Recipe, before: Recipe) -> Recipe:
    """A recipe that starts on a run's model starts on that run's base model, and must not name another one."""
    if recipe.model is None:
        return with_choices(recipe, model=before.model)
    if before.model is not None and not isinstance(recipe.model, nn.Module) and recipe.model != before.model:
        raise RecipeError(
            f"--from: that run compressed model {before.model!r}, this recipe names {recipe.model!r}; "
            "leave out the recipe's model, or say --model with the run's"
        )
    return recipe


def copy_start(began: Began, folder: RunFolder) -> None:
    """Copy what the run starts from, so that it stays whole when that other run is deleted."""
    _, last, start = began
    wanted = [(last, folder.path / "start" / "model.safetensors")]
    wanted += [
        (kept, folder.path / "kept" / kept.name)
        for kept in (last.parent.parent / "kept").glob("*")
        if kept.stem in start.kept
    ]
    for source, goal in wanted:
        goal.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(goal) as temporary:
            temporary.write_bytes(source.read_bytes())
    folder.write_json(folder.path / "start" / "outlook.json", outlook_to_json(start))
