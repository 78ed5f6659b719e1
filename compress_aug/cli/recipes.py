"""The commands about recipes: plan, list, copy, schema."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from compress_aug.cli.base import FromOption, RecipeName, Sets, new_console, read_recipe, start_of
from compress_aug.errors import UserError


def plan(recipe: RecipeName, sets: Sets = None, start_from: FromOption = None) -> None:
    """Show the unrolled timeline of a recipe as a table."""
    start = start_of(recipe, start_from)
    loaded = read_recipe(recipe, sets, start)
    table = Table(title=f"{loaded.name}: {len(loaded.stages)} stages", title_justify="left")
    rows = loaded.plan(start) if start else loaded.plan()
    table.add_column("#", justify="right")
    for name in rows[0]:
        table.add_column(name, justify="right" if name in ("epochs", "sparsity") else "left")
    for number, row in enumerate(rows):
        table.add_row(str(number), *row.values())
    console = new_console()
    console.print(table)
    for line in loaded.warnings():
        console.print(f"Note: {line}.", highlight=False, markup=False)


def list_all() -> None:
    """List the shipped recipes and studies, the devices, the models, the data sets and the stages."""
    from compress_aug.folders import shipped
    from compress_aug.recipe import STUDY_SUFFIX, recipe_names
    from compress_aug.stages import STAGES
    from compress_aug.study.file import study_names
    from compress_aug.targets import load_target, target_names

    console = new_console()
    recipes = [(name, _first_comment(shipped("recipes") / f"{name}.yaml")) for name in recipe_names()]
    studies = [(name, _first_comment(shipped("recipes") / f"{name}{STUDY_SUFFIX}")) for name in study_names()]
    targets = [(name, load_target(name).description) for name in target_names()]
    stages = [(word, (kind.__doc__ or "").split("\n")[0]) for word, kind in STAGES.items()]
    for title, rows in (
        ("Recipes", recipes),
        ("Studies", studies),
        ("Targets", targets),
        ("Stages", stages),
    ):
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


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from compress_aug.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))
