"""The schedule files that a recipe names, copied into the run's folder, so that the run stays whole without them."""

from pathlib import Path

from compress_aug.errors import RunFolderError
from compress_aug.folders import written_whole
from compress_aug.recipe import Recipe
from compress_aug.running.folder import RunFolder

FOLDER = "schedules"


def places(recipe: Recipe) -> dict[str, str]:
    """Each file that the recipe names, and where it lies within a run's folder."""
    found: dict[str, str] = {}

    def take(name: str) -> str:
        if name not in found:
            base, taken, number = Path(name), set(found.values()), 1
            while (
                place := f"{FOLDER}/{base.stem}{'' if number == 1 else f'-{number}'}{base.suffix}"
            ) in taken:
                number += 1
            found[name] = place
        return name

    recipe.with_files(take)
    return found


def portable(recipe: Recipe) -> Recipe:
    """The recipe as it is saved: files are named as seen from the run's folder."""
    return recipe.with_files(places(recipe).__getitem__)


def at_home(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe as it runs: it reads the copies in the run's folder."""
    inside = places(recipe)
    return recipe.with_files(lambda name: str(folder.path / inside[name]))


def store(recipe: Recipe, folder: RunFolder) -> None:
    """Copy the files that the recipe names into the run's folder."""
    for name, place in places(recipe).items():
        _copy(Path(name), folder.path / place)


def _copy(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(goal) as temporary:
        temporary.write_bytes(source.read_bytes())


def check_same_files(recipe: Recipe, folder: RunFolder, *, may_add: bool = False) -> None:
    """Refuse to go on with a run whose files have changed since. Raises RunFolderError that names the first one.

    may_add: the recipe has stages that the run was not started with: a file that is not there is copied now
    """
    for name, place in places(recipe).items():
        copy = folder.path / place
        if may_add and not copy.is_file():
            _copy(Path(name), copy)
        if not copy.is_file():
            raise RunFolderError(f"{copy} is missing, which the run was started with: start a new run.")
        if copy.read_bytes() != Path(name).read_bytes():
            raise RunFolderError(
                f"{name} has changed since {folder.path} was started with it: name its copy, {copy}, to go on "
                "as it was, or start a new run with another --out."
            )
