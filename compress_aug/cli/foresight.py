"""What a recipe says of its magnitudes before it runs, as plain numbers for a picture of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from compress_aug import schedule
from compress_aug.pictures.timeline import Kind, Stretch
from compress_aug.policies import PolicySchedule, read_schedule
from compress_aug.schedule import AnySchedule, Points

if TYPE_CHECKING:
    from compress_aug.recipe import Recipe
    from compress_aug.stages import Outlook, Train

# Read at so many places of a stage, a step of its schedule is drawn to within a pixel or two.
_PLACES = 400


def stretches(recipe: "Recipe") -> list[Stretch]:
    """The stages of a recipe, each training with its magnitude as far as it is known before anything runs.

    Sparsity is known, if no channels are cut or layers attached, which change what it is a share of. Bits are
    taken as the recipe names them, though layers with other bits shift the mean a little. The share of parameters
    is not known.

    Raises RecipeError for a recipe whose stages cannot follow each other, or a file that cannot be read.
    """
    from compress_aug.stages import Outlook, Train

    before = [Outlook(), *recipe.foresee()]
    return [
        _training(number, stage, outlook)
        if isinstance(stage, Train)
        # A stage of the user's own may train too.
        else Stretch(number, stage.title(), after.epochs - outlook.epochs, "unknown")
        for number, (stage, outlook, after) in enumerate(zip(recipe.stages, before, before[1:], strict=False))
    ]


def _training(number: int, stage: "Train", outlook: "Outlook") -> Stretch:
    given = stage.augment
    title, words = stage.title(), _words(given.describe())
    if given.policy is not None:
        return Stretch(number, title, stage.epochs, "policy", words=words)
    magnitude, known = _resolved(given.magnitude)
    facts = _facts(outlook)
    if not known or (isinstance(magnitude, Points) and magnitude.by not in facts):
        return Stretch(number, title, stage.epochs, "unknown", words=words)
    if isinstance(magnitude, Points) and magnitude.by == "bits":
        words += ", nominal"
    places = [(place + 0.5) / _PLACES for place in range(_PLACES)]
    levels = [schedule.magnitude(magnitude, progress, facts.__getitem__) for progress in places]
    kind: Kind = "random" if given.random_magnitude else "magnitude"
    return Stretch(number, title, stage.epochs, kind, levels, words)


def _resolved(given: AnySchedule | str) -> tuple[AnySchedule | None, bool]:
    """The schedule of a magnitude, and whether it is known: one that an earlier stage will find is not."""
    if not isinstance(given, str):
        return given, True
    if given == "none":
        return None, True
    if not given.endswith((".yaml", ".yml")):
        return None, False
    found = read_schedule(Path(given))
    assert not isinstance(found, PolicySchedule)
    return found, True


def _words(described: str) -> str:
    return f"M {described}" if described[:1].isdigit() else described


def _facts(outlook: "Outlook") -> dict[str, float]:
    facts = {} if outlook.auto_bits else {"bits": float(outlook.weight_bits)}
    if not outlook.sparsity or not (outlook.cut or outlook.attached):
        facts["sparsity"] = outlook.sparsity
    return facts
