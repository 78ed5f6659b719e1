"""The model of a run after one of its stages, and its validation images, for a command that looks into it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_aug.cli.base import new_console, read_choices
from compress_aug.errors import DataError, RunFolderError

if TYPE_CHECKING:
    from torch import nn

    from compress_aug.data import Data, Source
    from compress_aug.recipe import Recipe


@dataclass(frozen=True)
class RunModel:
    """What is looked into, on one device, and what to call it.

    validation: at most so many images as were asked for
    name:       of the model, as the recipe calls it
    after:      which stage, in words
    """

    model: "nn.Module"
    validation: "Source"
    data: "Data"
    name: str
    after: str


def run_model(
    folder: Path, stage: int | None, *, model: str | None, data: str | None, images: int, device: str
) -> RunModel:
    """The model of a run and its validation images, with all that makes reading its accuracy fast.

    stage:       as numbered in `plan`; None for the last one that is finished
    model, data: as on the command line, instead of what the run's recipe says

    Raises UserError with what is missing or does not fit.
    """
    import torch

    from compress_aug import checkpoint
    from compress_aug.recipe import with_choices
    from compress_aug.running.run import load_inputs, make_fabric

    recipe, file = _found(folder, stage)
    choices = read_choices(model, data, None, None)
    # Nothing is exported, so it does not matter if the file of the run's device is gone by now.
    recipe = with_choices(recipe, model=choices["model"], data=choices["data"], target="host_cpu")
    where = make_fabric(device).device
    inputs = load_inputs(recipe, new_console())
    _check_data(inputs.data, checkpoint.read_extra(file), folder)
    rebuilt = checkpoint.rebuild(inputs.fresh(), file)
    # Measured on a CPU: convolutions of ResNet20 take half the time.
    rebuilt = rebuilt.to(device=where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    part = inputs.data.validation.first(images).to(where)
    return RunModel(rebuilt, part, inputs.data, _model_name(recipe), _after(recipe, file))


def _found(folder: Path, stage: int | None) -> "tuple[Recipe, Path]":
    """The recipe of a run, and the checkpoint after one of its stages. Raises RunFolderError."""
    from compress_aug.running.folder import RunFolder
    from compress_aug.running.start import run_of

    place = RunFolder(folder)
    recipe, last, _ = run_of(place)
    if stage is None:
        return recipe, last
    done = len(place.done_rows(recipe))
    if stage >= done:
        raise RunFolderError(f"--stage {stage}: the finished stages of {folder} are 0 to {done - 1}.")
    file = place.last_checkpoint(recipe, stage + 1)
    if file is None:
        raise RunFolderError(f"--stage {stage}: nothing is trained or changed yet; name a later stage.")
    return recipe, file


def _check_data(data: "Data", about: dict[str, Any], folder: Path) -> None:
    """Refuse data that the model was not made for, or that has no image to judge it by."""
    here = {"classes": len(data.classes), "image_shape": list(data.image_shape)}
    for key, value in here.items():
        if about[key] != value:
            raise DataError(
                f"{data.name} has {key} {value}, the model of {folder} was made for {about[key]}: "
                "give data of the same kind by --data."
            )
    if not len(data.validation):
        raise DataError(
            f"{data.name} has no validation images, and test images must not choose anything: hold some out, "
            "as in --data '{name: digits, validation: 0.1}' (if the model was trained on them, layers seem to bear "
            "more than they do)."
        )


def _model_name(recipe: "Recipe") -> str:
    """The model in a word: what the recipe calls it, without the arguments of a call."""
    said = recipe.model
    return str(next(iter(said.values()))) if isinstance(said, dict) else str(said)


def _after(recipe: "Recipe", file: Path) -> str:
    """After which stage the checkpoint was written, in words."""
    number, _, _ = file.parent.name.partition("-")
    if not number.isdecimal():
        return "as it started"
    return f"after stage {int(number)} ({recipe.stages[int(number)].title()})"
