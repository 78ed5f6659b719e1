"""The commands about schedules of augmentation: show-schedule, convert-schedule."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress_aug.cli.base import PictureOption, say
from compress_aug.errors import RecipeError, UserError

if TYPE_CHECKING:
    from compress_aug.policies import PolicySchedule
    from compress_aug.schedule import AnySchedule


def show_schedule(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE_OR_RECIPE", help="A schedule file, a recipe file, or a shipped recipe."),
    ],
    epochs: Annotated[
        int | None, typer.Option(help="Replay a learned policy over so many epochs; its own by default.")
    ] = None,
    replay: Annotated[
        str | None, typer.Option(help="How it then fits: proportional (the default) or legacy.")
    ] = None,
    out: PictureOption = Path("schedule.png"),
) -> None:
    """Draw how augmentation changes: a learned policy, a schedule of a magnitude, or all epochs of a recipe."""
    from compress_aug.pictures.paper import check_png
    from compress_aug.policies import PolicySchedule

    check_png(out)
    schedule = _schedule_file(source)
    if isinstance(schedule, PolicySchedule):
        _draw_policy(schedule, source, epochs, replay, out)
        return
    if epochs is not None or replay is not None:
        option = "--epochs" if epochs is not None else "--replay"
        held = "is a recipe" if schedule is None else "holds a magnitude"
        raise UserError(f"{option} is for a learned policy, but {source} {held}; leave it out.")
    if schedule is None:
        _draw_recipe(source, out)
        return
    from compress_aug.pictures.magnitude_drawing import draw_magnitude
    from compress_aug.schedule import Points, describe

    over = "" if isinstance(schedule, Points) else " over a stage"
    what = f"magnitude {describe(schedule)}{over}"
    note = "of RandAugment's 0..30; in a stage it is rounded to the nearest whole number"
    draw_magnitude(schedule, out, title=f"{Path(source).name}: {what}", note=note)
    say(f"{out} shows the {what}, of {source}.")


def convert_schedule(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A log of PBA, or our own .yaml file.")],
    to: Annotated[
        Path, typer.Argument(metavar="OUT", help="Our own .yaml file from a log; a log, .txt, from .yaml.")
    ],
    epochs: Annotated[
        int | None, typer.Option(help="Of the search, which a log does not say; needed to read one.")
    ] = None,
) -> None:
    """Convert a learned policy: a log of Population Based Augmentation to our readable YAML file, or back."""
    if not source.is_file():
        raise UserError(f"There is no file {source}.")
    ours = _is_yaml(source)
    if ours and to.suffix.lower() != ".txt":
        raise UserError(f"{source} is our own file and becomes a log of PBA: let {to} end in .txt")
    if not ours and not _is_yaml(to):
        raise UserError(f"{source} is read as a log of PBA and becomes our own file: let {to} end in .yaml")
    if to.exists():
        raise UserError(f"{to} exists already and is not overwritten; name another file.")
    if not to.parent.is_dir():
        raise UserError(f"There is no folder {to.parent} to write {to.name} to.")
    say(_to_log(source, to, epochs) if ours else _from_log(source, to, epochs))


def _to_log(source: Path, to: Path, epochs: int | None) -> str:
    from compress_aug.policies import write_pba_log

    if epochs is not None:
        raise UserError(f"--epochs is for reading a log; {source} says itself how many there are.")
    schedule = policy_file(source)
    write_pba_log(schedule, to)
    lost = "such a log keeps neither the number of epochs nor the provenance"
    return f"{source}: {schedule.describe()}. {to} is a log of PBA now; {lost}."


def _from_log(source: Path, to: Path, epochs: int | None) -> str:
    from compress_aug.policies import read_pba_log, write_schedule

    if epochs is None:
        raise UserError(
            f"A log of PBA does not say how many epochs its search took: give --epochs with {source} "
            "(200 for the published search on CIFAR-10)."
        )
    schedule = read_pba_log(source, epochs=epochs)
    write_schedule(schedule, to)
    said = schedule.provenance
    lines = f"{said['lines']} line{'s' * (said['lines'] != 1)}"
    lineage = f"{said['valid_lines']} of {lines} tell the life of trial {said['trial']}"
    if said["valid_lines"] < said["lines"]:
        lineage += ", the others are left from lives that it gave up"
    return f"{source}: {lineage}. {to} holds {schedule.describe()}."


def _draw_policy(
    schedule: "PolicySchedule", source: str, epochs: int | None, replay: str | None, out: Path
) -> None:
    from compress_aug.pictures.policy_drawing import draw_policies
    from compress_aug.policies import curves
    from compress_aug.policies.schedule import check_replay

    chosen: Any = replay or "proportional"
    check_replay(chosen)
    if chosen == "flatten":
        raise UserError(
            "--replay flatten has no policy of an epoch to draw, each image draws one: use proportional or legacy."
        )
    length = schedule.epochs if epochs is None else epochs
    numbers = curves(schedule, length, chosen)
    replayed = "" if epochs is None else f"replayed over {epochs} epochs ({chosen})"
    how = "How likely each operation is, over its two copies; an image gets at most two of them"
    note = f"{replayed.capitalize()}. {how}" if replayed else how
    draw_policies(numbers, out, title=f"{Path(source).name}: {schedule.describe()}", note=note)
    say(f"{out} shows {schedule.describe()}{', ' * bool(replayed)}{replayed}, of {source}.")


def _draw_recipe(source: str, out: Path) -> None:
    from compress_aug.cli.foresight import stretches
    from compress_aug.pictures.timeline import draw_timeline
    from compress_aug.recipe import load_recipe

    recipe = load_recipe(source)
    found = stretches(recipe)
    total = sum(one.epochs for one in found)
    if not total:
        raise UserError(f"{source} trains nothing, so there are no epochs to draw.")
    trained = sum(one.epochs > 0 for one in found)
    note = f"{len(found)} stages, {trained} of which train, over {total} epochs; numbered as in compress-aug plan"
    draw_timeline(found, out, title=f"{recipe.name}: augmentation as the recipe plans it", note=note)
    say(f"{out} shows the magnitude of {source} over the {total} epochs of its {trained} trainings.")


def _schedule_file(source: str) -> "PolicySchedule | AnySchedule | None":
    """The schedule in a file, or None for a recipe. Raises UserError for a file that is neither."""
    from compress_aug.policies import read_schedule
    from compress_aug.reading import read_yaml

    path = Path(source)
    if not path.is_file():
        if _is_yaml(path):
            raise UserError(f"There is no file {path}.")
        return None
    if not _is_yaml(path):
        raise UserError(
            f"{path} is no .yaml file; a log of PBA is converted first: "
            f"compress-aug convert-schedule {path} {path.with_suffix('.yaml')} --epochs 200"
        )
    data = read_yaml(path).data
    keys = list(data) if isinstance(data, dict) else []
    if "stages" in keys and "space" not in keys:
        return None
    return read_schedule(path)


def policy_file(path: Path) -> "PolicySchedule":
    """The learned policy in a file of ours. Raises RecipeError if it holds something else."""
    from compress_aug.policies import PolicySchedule, read_schedule

    schedule = read_schedule(path)
    if not isinstance(schedule, PolicySchedule):
        raise RecipeError(f"{path} holds a magnitude, not a learned policy.")
    return schedule


def _is_yaml(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".yaml", ".yml")
