"""The command that scans which layers bear which sparsity, or which bits: sensitivity."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

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
    bits: Annotated[
        str | None,
        typer.Option(help="Scan bits of the weights (2..8) instead of sparsities, such as 8,6,4,3,2."),
    ] = None,
    activations: Annotated[
        bool, typer.Option("--activations", help="With --bits: what the layer reads gets the same bits.")
    ] = False,
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
    """Measure which layers of a run's model bear which sparsity or bits: change each alone, untrained; draw a map."""
    from compress_aug.pictures.paper import check_png

    check_png(out)
    if json_file is not None:
        _check_json(json_file)
    if bits is not None and sparsities is not None:
        raise UserError("--bits and --sparsities: one scan at a time, give one of them.")
    if activations and bits is None:
        raise UserError("--activations goes with --bits: name the bits to scan, such as --bits 8,4,2.")
    shares = None if sparsities is None else _numbers(sparsities, float, _SHARES)
    widths = None if bits is None else _numbers(bits, int, _BITS)
    from compress_aug.pictures.sensitivity_drawing import draw_sensitivity
    from compress_aug.progress import counting
    from compress_aug.sensitivity import SPARSITIES, scan_bits, scan_pruning

    subject = run_model(folder, stage, model=model, data=data, images=images, device=device)
    judged_by = (subject.validation.batches(_BATCH), subject.data.normalise)
    doing = "pruning" if widths is None else "quantizing"
    try:
        with counting(new_console(), f"{doing} one layer at a time") as counted:
            if widths is None:
                found = scan_pruning(subject.model, *judged_by, shares or SPARSITIES, layers or None, counted)
            else:
                chosen = layers or None
                found = scan_bits(subject.model, *judged_by, widths, chosen, counted, activations=activations)
    except KeyboardInterrupt:
        raise Interrupted("Stopped; nothing is written.") from None
    words = _WORDS[found.kind]
    right = f"{100 * found.base:.1f} % of {found.images:,} validation images"
    say(f"{right} are right; with {words.changed}:")
    new_console().print(_table(found, tolerance))
    say(_together(found, tolerance))
    title = f"{subject.name} of {folder}, {subject.after}: which layers bear which {words.what}"
    note = _note(found, subject.data.name, tolerance)
    draw_sensitivity(found, out, title=title, note=note, tolerance=tolerance)
    if json_file is not None:
        _write_json(json_file, found, folder, subject, tolerance)
    say(f"{out} shows it as a map" + (f"; the numbers are in {json_file}." if json_file else "."))


@dataclass(frozen=True)
class _Words:
    """What a kind of scan is called.

    what:    is borne;  changed: what was done, after "with"
    happens: to one layer, after "when";  most: what "bears" names, up to what it costs
    """

    what: str
    changed: str
    happens: str
    most: str


_WORDS = {
    "prune": _Words(
        "sparsity",
        "the smallest weights of one layer at zero",
        "one layer alone is pruned",
        "the largest sparsity that costs",
    ),
    "bits": _Words(
        "bits",
        "the weights of one layer at few bits, and how much the loss grows (cross-entropy)",
        "the weights of one layer alone have few bits",
        "the fewest bits that cost",
    ),
    "bits with inputs": _Words(
        "bits",
        "the weights and inputs of one layer at few bits, and how much the loss grows (cross-entropy)",
        "the weights and inputs of one layer alone have few bits",
        "the fewest bits that cost",
    ),
}

_SHARES = ("--sparsities", "numbers from 0 to below 1", "0.5,0.8")
_BITS = ("--bits", "whole numbers from 2 to 8", "8,4,2")

_Number = TypeVar("_Number", int, float)


def _numbers(text: str, kind: Callable[[str], _Number], about: tuple[str, str, str]) -> list[_Number]:
    """Numbers between commas. Raises UserError for what is none; their range is checked by the scan."""
    option, expected, example = about
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} {text}: expected {expected} with commas between, such as {example}"
        ) from None


def _table(found: "Sensitivity", tolerance: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("weights", justify="right")
    table.add_column("MACs", justify="right")
    zeros = any(layer.sparsity for layer in found.layers)
    if zeros:
        table.add_column("zeros", justify="right")
    for head in found.heads():
        table.add_column(head, justify="right")
    table.add_column("bears", justify="right")
    bears = found.bears(tolerance)
    grown = found.loss_increases()
    for layer in found.layers:
        cells = [f"{100 * accuracy:.1f}" for accuracy in layer.accuracies]
        if found.kind != "prune":
            # Of few bits the accuracy often tells nothing where the loss does.
            cells = [f"{cell} {loss:+.3f}" for cell, loss in zip(cells, grown[layer.name], strict=True)]
        table.add_row(
            Text(layer.name),
            f"{layer.parameters:,}",
            "" if layer.macs is None else f"{100 * layer.macs / found.macs:.1f} %",
            *([f"{100 * layer.sparsity:.1f} %"] if zeros else []),
            *("-" if n < layer.already else cell for n, cell in enumerate(cells)),
            bears[layer.name],
        )
    return table


def _together(found: "Sensitivity", tolerance: float) -> str:
    """What the column "bears" comes to, and what it does not say."""
    already = " (- : the layer has as many zeros already)" if any(one.already for one in found.layers) else ""
    together = found.together(tolerance)
    if found.kind == "prune":
        come = f"With that in each of these layers {100 * together:.0f} % of their weights would be zero"
    else:
        unborne = " (32 where none is borne)" if None in found.bearable(tolerance).values() else ""
        come = f"With that in each of these layers{unborne} a weight of theirs has {together:.1f} bits in the mean"
    return (
        f"bears: {_WORDS[found.kind].most} at most {_points(tolerance)} of accuracy{already}. {come}; "
        "together they lose more than each alone, and training afterwards wins some of it back."
    )


def _note(found: "Sensitivity", data: str, tolerance: float) -> str:
    """The line below the picture's title."""
    return (
        f"Points of accuracy that are lost on {found.images:,} validation images of {data} when "
        f"{_WORDS[found.kind].happens}, without training; {100 * found.base:.1f} % are right before, and one image is "
        f"{_points(100 / found.images)}. Framed: up to {_WORDS[found.kind].most} at most "
        f"{_points(tolerance)}."
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
