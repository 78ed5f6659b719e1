"""The command that shows augmentation on images: show-augment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress_aug.cli.base import PictureOption, data_choice, new_console, say
from compress_aug.cli.schedules import policy_file
from compress_aug.errors import UserError, nearest

if TYPE_CHECKING:
    from compress_aug.data import Data

ROWS = ("operations", "magnitudes", "policy")


def show_augment(
    data: Annotated[
        str | None,
        typer.Option(help="A name, a folder of images, or package.module:function; digits by default."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="What the rows are: operations, magnitudes, or policy (its epochs).")
    ] = None,
    magnitude: Annotated[
        int | None, typer.Option(help="M of RandAugment, 0..30, for rows of operations; 14 by default.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="The file of a learned policy (rows: policy).")] = None,
    samples: Annotated[int, typer.Option(min=1, max=32, help="How many training images.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed, other draws.")] = 0,
    fill: Annotated[
        str | None,
        typer.Option(
            help="Uncovered pixels: 0..255, RED,GREEN,BLUE or mean; 0, with a policy mean, by default."
        ),
    ] = None,
    interpolation: Annotated[str, typer.Option(help="Of shear and rotate: nearest or bilinear.")] = "nearest",
    out: PictureOption = Path("augment.png"),
) -> None:
    """Draw what augmentation does to your own training images, as one PNG."""
    kind = _rows(rows, magnitude, policy)
    from compress_aug.pictures.paper import check_png

    check_png(out)
    schedule = None if policy is None else policy_file(policy)
    from compress_aug.augment import check_magnitude
    from compress_aug.augment.geometry import check_interpolation
    from compress_aug.pictures import grids
    from compress_aug.pictures.grid_drawing import draw_grid
    from compress_aug.pictures.samples import pick_samples

    level = check_magnitude(14 if magnitude is None else magnitude)
    check_interpolation(interpolation)
    colour = _fill(fill or ("0" if policy is None else "mean"))
    images = _images(data)
    picked = pick_samples(images, samples)
    drawn: Any = {"fill": _mean(images) if colour is None else colour, "interpolation": interpolation}
    if schedule is not None and policy is not None:
        grid = grids.policy_grid(picked, schedule, name=policy.name, seed=seed, **drawn)
    elif kind == "magnitudes":
        grid = grids.magnitudes_grid(picked, seed=seed, **drawn)
    else:
        grid = grids.operations_grid(picked, level, **drawn)
    draw_grid(grid, out)
    told = "" if data else ", the default, which needs no download; name yours with --data"
    say(f"{out} shows {grid.title} on {picked.describe()}{told}.")


def _rows(rows: str | None, magnitude: int | None, policy: Path | None) -> str:
    """What the rows are. Raises UserError for an unknown word and for options that do not go together."""
    kind = rows or ("operations" if policy is None else "policy")
    if kind not in ROWS:
        raise UserError(f"--rows {kind}: there is no such kind of rows; {nearest(kind, ROWS)}")
    if kind == "policy" and policy is None:
        raise UserError("--rows policy needs the file of a learned policy: --policy FILE")
    if kind != "policy" and policy is not None:
        raise UserError(f"--policy shows epochs of a policy, not {kind}: leave out --rows, or --policy.")
    if kind != "operations" and magnitude is not None:
        raise UserError(f"--magnitude is for rows of operations, and rows are {kind}: leave it out.")
    return kind


def _images(given: str | None) -> "Data":
    from compress_aug.data import load_data
    from compress_aug.pictures.samples import LOOKED_AT
    from compress_aug.progress import counting

    spec = data_choice(given or "digits")
    if isinstance(spec, dict) and "folder" in spec:
        # No other image is looked at; a folder would else be decoded whole.
        spec = {"train": LOOKED_AT, "test": 1, **spec}
    with counting(new_console(), "reading images") as counted:
        return load_data(spec, on_progress=counted)


def _fill(text: str) -> int | tuple[int, ...] | None:
    """The fill as a number or one for each channel; None for mean."""
    if text == "mean":
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise UserError(f"--fill {text}: expected 0..255, RED,GREEN,BLUE of them, or mean.")
    values = tuple(map(int, parts))
    return values if len(values) == 3 else values[0]


def _mean(data: "Data") -> int | tuple[int, ...]:
    values = tuple(round(255 * value) for value in data.mean)
    return values if len(values) > 1 else values[0]
