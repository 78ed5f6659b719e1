"""The command that scans which layers bear which sparsity: sensitivity."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from compress_aug.cli.base import (
    DataOption,
    ModelOption,
    PictureOption,
    RunArgument,
    new_console,
    say,
)
from compress_aug.cli.run_model import RunModel, run_model
from compress_aug.errors import Interrupted, UserError

if TYPE_CHECKING:
    from compress_aug.sensitivity import Sensitivity

# Measured: of more images a processor's cache does not hold the activations.
_BATCH = 50

_FORMAT = "compress-aug sensitivity"


def sensitivity(
    folder: RunArgument,
    stage: Annotated[
        int | None,
        typer.Option(
            min=0, help="The model after this stage, numbered as in `plan`; the last one by default."
        ),
    ] = None,
    sparsities: Annotated[
        str | None,
        typer.Option(help="Shares in [0, 1), such as 0.5,0.8; 0.3,0.5,0.7,0.8,0.9,0.95 by default."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="A name, glob or type, such as 'layer2.*', Linear; repeat for more; all by default."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="At most so many validation images.")] = 1000,
    tolerance: Annotated[
        float, typer.Option(min=0, max=100, help="What a layer may lose, in points of accuracy (0..100).")
    ] = 1.0,
    model: ModelOption = None,
    data: DataOption = None,
    device: Annotated[str, typer.Option(help="Where it runs: auto, cpu, cuda, cuda:N.")] = "auto",
    out: PictureOption = Path("sensitivity.png"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A JSON file for the numbers; one of ours is made anew.")
    ] = None,
) -> None:
    """Measure which layers of a run's model bear which sparsity: prune each alone, without training; draw a map."""
    from compress_aug.pictures.paper import check_png

    check_png(out)
    if json_file is not None:
        _check_json(json_file)
    shares = None if sparsities is None else _shares(sparsities)
    from compress_aug.pictures.sensitivity_drawing import draw_sensitivity
    from compress_aug.progress import counting
    from compress_aug.sensitivity import SPARSITIES, scan_pruning

    subject = run_model(folder, stage, model=model, data=data, images=images, device=device)
    try:
        with counting(new_console(), "pruning one layer at a time") as counted:
            found = scan_pruning(
                subject.model,
                subject.validation.batches(_BATCH),
                subject.data.normalise,
                shares or SPARSITIES,
                layers or None,
                counted,
            )
    except KeyboardInterrupt:
        raise Interrupted("Stopped; nothing is written.") from None
    right = f"{100 * found.base:.1f} % of {found.images:,} validation images"
    say(f"{right} are right; with the smallest weights of one layer at zero:")
    new_console().print(_table(found, tolerance))
    say(_together(found, tolerance))
    title = f"{subject.name} of {folder}, {subject.after}: which layers bear which sparsity"
    note = _note(found, subject.data.name, tolerance)
    draw_sensitivity(found, out, title=title, note=note, tolerance=tolerance)
    if json_file is not None:
        _write_json(json_file, found, folder, subject, tolerance)
    say(f"{out} shows it as a map" + (f"; the numbers are in {json_file}." if json_file else "."))


def _shares(text: str) -> list[float]:
    """Numbers between commas. Raises UserError for what is none; their range is checked by the scan."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--sparsities {text}: expected numbers from 0 to below 1 with commas between, such as 0.5,0.8"
        ) from None


def _table(found: "Sensitivity", tolerance: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("weights", justify="right")
    table.add_column("MACs", justify="right")
    zeros = any(layer.sparsity for layer in found.layers)
    if zeros:
        table.add_column("zeros", justify="right")
    for amount in found.amounts:
        table.add_column(f"{amount:g}", justify="right")
    table.add_column("bears", justify="right")
    bears = found.bears(tolerance)
    for layer in found.layers:
        table.add_row(
            Text(layer.name),
            f"{layer.parameters:,}",
            "" if layer.macs is None else f"{100 * layer.macs / found.macs:.1f} %",
            *([f"{100 * layer.sparsity:.1f} %"] if zeros else []),
            *("-" if n < layer.already else f"{100 * a:.1f}" for n, a in enumerate(layer.accuracies)),
            bears[layer.name],
        )
    return table


def _together(found: "Sensitivity", tolerance: float) -> str:
    """What the column "bears" comes to, and what it does not say."""
    already = " (- : the layer has as many zeros already)" if any(one.already for one in found.layers) else ""
    return (
        f"bears: the largest sparsity that costs at most {_points(tolerance)} of accuracy{already}. With that in "
        f"each of these layers {100 * found.together(tolerance):.0f} % of their weights would be zero; together they "
        "lose more than each alone, and training afterwards wins some of it back."
    )


def _note(found: "Sensitivity", data: str, tolerance: float) -> str:
    """The line below the picture's title."""
    return (
        f"Points of accuracy that are lost on {found.images:,} validation images of {data} when one layer alone is "
        f"pruned, without training; {100 * found.base:.1f} % are right before, and one image is "
        f"{_points(100 / found.images)}. Framed: up to the largest sparsity that costs at most {_points(tolerance)}."
    )


def _points(number: float) -> str:
    return "1 point" if number == 1 else f"{round(number, 2):g} points"


def _check_json(path: Path) -> None:
    """Refuse, before any work, a file that is not ours to write."""
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} to.")
    try:
        ours = not path.exists() or json.loads(path.read_text(encoding="utf-8"))["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{path} is there already and is none of this command; name another file.")


def _write_json(path: Path, found: "Sensitivity", folder: Path, subject: RunModel, tolerance: float) -> None:
    from compress_aug.folders import written_whole

    content = {
        "format": _FORMAT,
        "run": str(folder),
        "after": subject.after,
        "model": subject.name,
        "data": subject.data.name,
        **found.to_json(),
        "tolerance_points": tolerance,
        "bears": found.bearable(tolerance),
    }
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
