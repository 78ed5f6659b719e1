"""What commands share: the console, arguments and options of the same meaning, and how these are resolved."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from compress_aug.errors import RecipeError

# Nothing in this room imports torch at module level: --help must answer at once.

RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (see `list`).")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE, such as stages.0.train.epochs=2; repeat for more."),
]
ModelOption = Annotated[
    str | None, typer.Option(help="A name, torchvision:NAME, timm:NAME, or package.module:function.")
]
DataOption = Annotated[
    str | None, typer.Option(help="A name, a folder of images, or package.module:function.")
]
TargetOption = Annotated[str | None, typer.Option(help="The device: a name (see `list`) or a YAML file.")]
DeviceOption = Annotated[str, typer.Option(help="Where training runs: auto, cpu, cuda, cuda:N.")]
SeedOption = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Instead of the recipe's seed.")]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", help="A run on whose compressed model, as far as it got, this recipe starts."),
]
RunArgument = Annotated[Path, typer.Argument(help="The folder of a run.")]
PictureOption = Annotated[Path, typer.Option(help="The PNG file; one that is there is made anew.")]


def new_console() -> Console:
    """Where a command prints; as wide as the terminal, or 110 columns in a file."""
    # In a log file there is no width to ask for, and 80 columns would break the tables.
    # No markup: paths and names come from users, and "[/x]" or ":smile:" in them is just text.
    return Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False)


def read_recipe(name: str, sets: list[str] | None, start: Any = None) -> Any:
    """The recipe of that file or name; `start` is what is known of the model it starts on."""
    from compress_aug.recipe import load_recipe
    from compress_aug.stages import Outlook

    return load_recipe(name, sets or [], start=start or Outlook())


def start_of(recipe: str, start_from: Path | None, *, resume: bool = False, out: Path | None = None) -> Any:
    """What is known of the model that the recipe starts on; None for a fresh one."""
    if start_from is None and not resume:
        return None
    from compress_aug.running.start import beginning_of

    began = beginning_of(recipe, start_from, resume=resume, out=out)
    return began[2] if began else None


def data_choice(given: str | None) -> Any:
    """A folder that is there stands for its images; everything else is what the recipe would say."""
    if given is not None and Path(given).is_dir():
        return {"folder": given}
    if given is not None and given.lstrip().startswith("{"):
        from compress_aug.reading import plain_scalar

        return plain_scalar(given)
    if given is not None and any(mark in given for mark in ("/", "\\")) and ":" not in given:
        raise RecipeError(f"--data {given}: there is no such folder")
    return given


def read_choices(model: str | None, data: str | None, target: str | None, seed: int | None) -> dict[str, Any]:
    """What the user chose instead of what the recipe says, as `run` and `check` take it."""
    from compress_aug.reading import plain_scalar

    mapping = model is not None and model.lstrip().startswith("{")
    return {
        "model": plain_scalar(model) if mapping and model else model,
        "data": data_choice(data),
        "target": target,
        "seed": seed,
    }


def say(line: str) -> None:
    """Print one line as it is, however long."""
    new_console().print(line, highlight=False, soft_wrap=True)
