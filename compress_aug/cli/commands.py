"""All commands in the order in which --help lists them, and how each error leaves the program."""

import sys
import traceback

import typer
from rich.console import Console
from rich.text import Text

from compress_aug.cli import augmentation, files, recipes, runs, schedules, sensitivity, studies
from compress_aug.errors import CompressAugError

app = typer.Typer(
    help="Make a vision model small and fast: recipes with augmentation as part of compression.",
    epilog="Add --debug to any command to see the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

app.command()(runs.run)
app.command()(runs.check)
app.command()(recipes.plan)
app.command("list")(recipes.list_all)
app.command()(recipes.copy)
app.command()(recipes.schema)
app.command()(augmentation.show_augment)
app.command()(schedules.show_schedule)
app.command()(schedules.convert_schedule)
app.command()(sensitivity.sensitivity)
app.command()(files.bench)
app.command()(runs.export)
app.command()(runs.report)
app.command()(studies.study)
app.command()(studies.results)


def main() -> None:
    """The entry point: exit code 0 done, 1 the work failed or a budget was missed, 2 the user can put it right."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    errors = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
    try:
        app(arguments, standalone_mode=True)
    except CompressAugError as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            errors.print(Text("error:", style="bold red"), line, highlight=False)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        errors.print("Stopped.")
        raise SystemExit(1) from None
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        errors.print(Text("internal error:", style="bold red"), f"{kind}: {error}", highlight=False)
        errors.print("This is a mistake of ours; the same command with --debug shows where.")
        raise SystemExit(1) from None
