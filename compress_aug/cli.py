"""The command line: run, check, plan, list, copy, schema, bench, export, report."""

import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compress_aug.errors import BudgetMissed, CompressAugError, RecipeError, UserError

# Nothing here imports torch at module level: --help must answer at once.

app = typer.Typer(
    help="Make a vision model small and fast: recipes with augmentation as part of compression.",
    epilog="Add --debug to any command to see the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

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
    Path | None, typer.Option("--from", help="A finished run whose compressed model this recipe starts on.")
]
RunArgument = Annotated[Path, typer.Argument(help="The folder of a run.")]


def _console() -> Console:
    # In a log file there is no width to ask for, and 80 columns would break the tables.
    # No markup: paths and names come from users, and "[/x]" or ":smile:" in them is just text.
    return Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False)


def _recipe(name: str, sets: list[str] | None, start: Any = None) -> Any:
    from compress_aug.recipe import load_recipe
    from compress_aug.stages import Outlook

    return load_recipe(name, sets or [], start=start or Outlook())


def _start(recipe: str, start_from: Path | None, *, resume: bool = False, out: Path | None = None) -> Any:
    """What is known of the model that the recipe starts on; None for a fresh one."""
    if start_from is None and not resume:
        return None
    from compress_aug.running.start import beginning_of

    began = beginning_of(recipe, start_from, resume=resume, out=out)
    return began[2] if began else None


def _data(given: str | None) -> Any:
    """A folder that is there stands for its images; everything else is what the recipe would say."""
    if given is not None and Path(given).is_dir():
        return {"folder": given}
    if given is not None and given.lstrip().startswith("{"):
        from compress_aug.reading import plain_scalar

        return plain_scalar(given)
    if given is not None and any(mark in given for mark in ("/", "\\")) and ":" not in given:
        raise RecipeError(f"--data {given}: there is no such folder")
    return given


def _choices(model: str | None, data: str | None, target: str | None, seed: int | None) -> dict[str, Any]:
    from compress_aug.reading import plain_scalar

    mapping = model is not None and model.lstrip().startswith("{")
    return {
        "model": plain_scalar(model) if mapping and model else model,
        "data": _data(data),
        "target": target,
        "seed": seed,
    }


@app.command()
def run(
    recipe: RecipeName,
    model: ModelOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out (or runs/NAME).")
    ] = False,
    start_from: FromOption = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(min=1, help="How many of them, one process each.")] = 1,
    seed: SeedOption = None,
) -> None:
    """Run a recipe: train, compress, export, prove and time."""
    console = _console()
    loaded = _recipe(recipe, sets, _start(recipe, start_from, resume=resume, out=out))
    from compress_aug.report import report_table, write_page
    from compress_aug.running import run as run_recipe

    try:
        result = run_recipe(
            loaded,
            out=out,
            resume=resume,
            start_from=start_from,
            device=device,
            devices=devices,
            console=console,
            **_choices(model, data, target, seed),
        )
    except BudgetMissed as error:
        # It comes after everything is written: the table is worth as much as otherwise.
        if error.folder is not None:
            _show(console, error.folder, report_table, write_page)
        raise
    if result.process == 0:
        _show(console, result.folder, report_table, write_page)


def _show(console: Console, folder: Path, report_table: Any, write_page: Any) -> None:
    from compress_aug.report import read_report

    console.print(report_table(read_report(folder)))
    console.print(
        f"Everything lies in {folder}; as a page: {write_page(folder)}", highlight=False, soft_wrap=True
    )


@app.command()
def check(
    recipe: RecipeName,
    model: ModelOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    sets: Sets = None,
    start_from: FromOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = None,
) -> None:
    """Find whatever can fail before training: recipe, data, each surgery, two steps of each training, the export."""
    console = _console()
    loaded = _recipe(recipe, sets, _start(recipe, start_from))
    from compress_aug.running import check as check_recipe

    check_recipe(
        loaded, start_from=start_from, device=device, console=console, **_choices(model, data, target, seed)
    )
    console.print(f"{recipe}: every stage works on this model and this data.", highlight=False)


@app.command()
def plan(recipe: RecipeName, sets: Sets = None, start_from: FromOption = None) -> None:
    """Show the unrolled timeline of a recipe as a table."""
    start = _start(recipe, start_from)
    loaded = _recipe(recipe, sets, start)
    table = Table(title=f"{loaded.name}: {len(loaded.stages)} stages", title_justify="left")
    rows = loaded.plan(start) if start else loaded.plan()
    table.add_column("#", justify="right")
    for name in rows[0]:
        table.add_column(name, justify="right" if name in ("epochs", "sparsity") else "left")
    for number, row in enumerate(rows):
        table.add_row(str(number), *row.values())
    console = _console()
    console.print(table)
    for line in loaded.warnings():
        console.print(f"Note: {line}.", highlight=False, markup=False)


@app.command("list")
def list_all() -> None:
    """List the shipped recipes, the devices, the models, the data sets and the stages."""
    from compress_aug.folders import shipped
    from compress_aug.recipe import recipe_names
    from compress_aug.stages import STAGES
    from compress_aug.targets import load_target, target_names

    console = _console()
    recipes = [(name, _first_comment(shipped("recipes") / f"{name}.yaml")) for name in recipe_names()]
    targets = [(name, load_target(name).description) for name in target_names()]
    stages = [(word, (kind.__doc__ or "").split("\n")[0]) for word, kind in STAGES.items()]
    for title, rows in (("Recipes", recipes), ("Targets", targets), ("Stages", stages)):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    from compress_aug.data import data_names
    from compress_aug.models import model_names

    own = "package.module:function"
    console.print(f"Models: {', '.join(model_names())}, torchvision:NAME, timm:NAME, {own}", highlight=False)
    console.print(f"Data: {', '.join(data_names())}, a folder of images, {own}", highlight=False)


def _first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return line.lstrip("# ").partition(" — ")[2] or line.lstrip("# ")


@app.command()
def copy(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Argument(help="The new file; NAME.yaml here by default.")] = None,
) -> None:
    """Copy a shipped recipe, to change and own it."""
    from compress_aug.recipe import find_recipe

    source = find_recipe(recipe)
    goal = to or Path(source.name)
    if goal.is_dir():
        goal = goal / source.name
    if goal.exists():
        raise UserError(f"{goal} exists already; name another file: compress-aug copy {recipe} mine.yaml")
    if not goal.parent.is_dir():
        raise UserError(f"There is no folder {goal.parent} to copy to.")
    shutil.copyfile(source, goal)
    typer.echo(f"{goal} is yours now. Try it: compress-aug check {goal}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from compress_aug.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(help="An ONNX file.")],
    against: Annotated[Path | None, typer.Option(help="Another file, timed in turns with it.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs; the median and the 95th percentile count.")
    ] = 200,
) -> None:
    """Time an ONNX file in a fresh process, one image at a time."""
    for path in (file, against):
        if path is not None and not path.is_file():
            raise UserError(f"There is no file {path}.")
    from compress_aug.deploy import latency

    times = latency(file, threads=threads, repeats=repeats, against=against)
    table = Table()
    for name in ("file", "bytes", "p50 ms", "p95 ms"):
        table.add_column(name, justify="left" if name == "file" else "right")
    table.add_row(str(file), f"{file.stat().st_size:,}", f"{times.p50_ms:.3f}", f"{times.p95_ms:.3f}")
    if against is not None:
        size = f"{against.stat().st_size:,}"
        table.add_row(str(against), size, f"{times.against_p50_ms:.3f}", f"{times.against_p95_ms:.3f}")
    console = _console()
    console.print(table)
    if against is not None and times.against_p50_ms:
        ratio = times.against_p50_ms / times.p50_ms
        console.print(f"{file} runs {ratio:.2f}x as fast as {against}.", highlight=False)


@app.command()
def export(
    folder: RunArgument,
    target: TargetOption = None,
    file: Annotated[str, typer.Option(help="Its name within the run's folder.")] = "model.onnx",
    model: ModelOption = None,
    data: DataOption = None,
) -> None:
    """Write the model of a run again, for another target or under another name."""
    from compress_aug.report import read_report, report_table, write_page
    from compress_aug.running import export_again

    choices = _choices(model, data, None, None)
    console = _console()
    export_again(
        folder, target=target, file=file, model=choices["model"], data=choices["data"], console=console
    )
    console.print(report_table(read_report(folder)))
    write_page(folder)


@app.command()
def report(folder: RunArgument) -> None:
    """Show the table of a run, and write one HTML page with curves beside it."""
    from compress_aug.report import report_table, write_page

    _show(_console(), folder, report_table, write_page)


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


if __name__ == "__main__":
    main()
