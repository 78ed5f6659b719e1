"""The commands about runs: run, check, export, report."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from compress_aug.cli.base import (
    DataOption,
    DeviceOption,
    FromOption,
    ModelOption,
    RecipeName,
    RunArgument,
    SeedOption,
    Sets,
    TargetOption,
    new_console,
    read_choices,
    read_recipe,
    start_of,
)
from compress_aug.errors import BudgetMissed


def run(
    recipe: RecipeName,
    model: ModelOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in --out (or runs/NAME); stages not begun may have changed."
        ),
    ] = False,
    start_from: FromOption = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(min=1, help="How many of them, one process each.")] = 1,
    seed: SeedOption = None,
) -> None:
    """Run a recipe: train, compress, export, prove and time."""
    console = new_console()
    loaded = read_recipe(recipe, sets, start_of(recipe, start_from, resume=resume, out=out))
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
            **read_choices(model, data, target, seed),
        )
    except BudgetMissed as error:
        # It comes after everything is written: the table is worth as much as otherwise.
        if error.folder is not None:
            _show(console, error.folder, report_table, write_page)
        raise
    if result.process == 0:
        _show(console, result.folder, report_table, write_page)


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
    console = new_console()
    loaded = read_recipe(recipe, sets, start_of(recipe, start_from))
    from compress_aug.running import check as check_recipe

    check_recipe(
        loaded,
        start_from=start_from,
        device=device,
        console=console,
        **read_choices(model, data, target, seed),
    )
    console.print(f"{recipe}: every stage works on this model and this data.", highlight=False)


def export(
    folder: RunArgument,
    target: TargetOption = None,
    file: Annotated[str, typer.Option(help="Its name within the run's folder.")] = "model.onnx",
    kit: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also make this folder to copy to the device.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
) -> None:
    """Write the model of a run again, for another target or under another name."""
    from compress_aug.report import read_report, report_table, write_page
    from compress_aug.running import export_again

    choices = read_choices(model, data, None, None)
    console = new_console()
    export_again(
        folder,
        target=target,
        file=file,
        model=choices["model"],
        data=choices["data"],
        kit=kit,
        console=console,
    )
    console.print(report_table(read_report(folder)))
    write_page(folder)
    if kit is not None:
        console.print(
            f"For the device: {kit}; its README.md has the commands.", highlight=False, soft_wrap=True
        )


def report(folder: RunArgument) -> None:
    """Show the table of a run, and write one HTML page with curves beside it."""
    from compress_aug.report import report_table, write_page

    _show(new_console(), folder, report_table, write_page)


def _show(console: Console, folder: Path, report_table: Any, write_page: Any) -> None:
    from compress_aug.report import read_report

    console.print(report_table(read_report(folder)))
    console.print(
        f"Everything lies in {folder}; as a page: {write_page(folder)}", highlight=False, soft_wrap=True
    )
