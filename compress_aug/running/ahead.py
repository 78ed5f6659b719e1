"""What a stage would find only when its turn comes, looked at before the first one: nets, images to judge by, Ray."""

from collections.abc import Callable

import torch

from compress_aug.data import Data
from compress_aug.errors import RecipeError, UserError
from compress_aug.models import check_fits, fresh_model
from compress_aug.recipe import Recipe
from compress_aug.search import reduced
from compress_aug.search.ray_driver import check_ray
from compress_aug.stages import Model, Search, Stage


def check_ahead(recipe: Recipe, data: Data, *, done: int = 0, devices: int = 1) -> None:
    """Try what stages need of this machine and of this data, so that no training before them is in vain.

    done: this many stages need nothing any more

    Raises the UserError that the stage would raise, with the stage's place.
    """
    for index in range(done, len(recipe.stages)):
        stage = recipe.stages[index]
        try:
            for look in _LOOKS:
                look(stage, data, devices)
        except UserError as error:
            place = recipe.places[index] if recipe.places else f"stage {index} ({stage.title()})"
            error.args = (f"{place}: {error}",)
            raise


def _net(stage: Stage, data: Data, devices: int) -> None:
    if not isinstance(stage, Model):
        return
    shape, classes = data.image_shape, len(data.classes)
    # Forked, so that looking ahead does not move the random numbers of what follows.
    with torch.random.fork_rng(devices=[]):
        check_fits(
            fresh_model(stage.name, stage.arguments, classes=classes, image_shape=shape), shape, classes
        )


def _processes(stage: Stage, data: Data, devices: int) -> None:
    if isinstance(stage, Search) and devices > 1:
        raise RecipeError(
            f"a search runs in one process, and this run has {devices}: run it on one device (with a recipe of its "
            "own, say), and name the file of what it kept in this recipe"
        )


def _images(stage: Stage, data: Data, devices: int) -> None:
    if isinstance(stage, Search):
        reduced(data, stage.train_images, stage.validation_images)


def _ray(stage: Stage, data: Data, devices: int) -> None:
    if isinstance(stage, Search) and stage.driver == "ray":
        check_ray()


_LOOKS: tuple[Callable[[Stage, Data, int], None], ...] = (_processes, _net, _images, _ray)
