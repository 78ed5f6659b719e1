"""export_again: the model of a run written once more, for another target or under another name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from torch import nn

from compress_aug.deploy import check_kit_folder
from compress_aug.errors import QuantizeError, RecipeError, RunFolderError
from compress_aug.quantization import is_quantized, unsigned_bits, weight_bits
from compress_aug.reading import sentences
from compress_aug.recipe import with_choices
from compress_aug.running.folder import RunFolder
from compress_aug.running.run import load_inputs, make_fabric, metadata_of
from compress_aug.running.start import run_of
from compress_aug.running.walk import Walk, finished_state
from compress_aug.stages import Export
from compress_aug.stages.export import write_kit_of
from compress_aug.surgery import surgery_log
from compress_aug.targets import Target, load_target


def export_again(
    folder: str | Path,
    *,
    target: str | None = None,
    file: str = "model.onnx",
    model: Any = None,
    data: Any = None,
    kit: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write, prove, audit and time the model of a run again; adds the row to its report.json and returns it.

    target: a shipped device or a path; the run's own by default
    file:   within the run's folder; an existing file of that name is replaced
    model, data: where the recipe names none, as for `run`
    kit:    also make this folder for the device (see `deploy.write_kit`): new, empty or a kit

    Raises QuantizeError for a target that needs another quantization than the one that was trained, and what
    the export stage raises.
    """
    place = RunFolder(Path(folder))
    recipe, _, outlook = run_of(place)
    recipe = with_choices(recipe, model=model, data=data)
    stage = _export_to(file)
    rows = place.done_rows(recipe)
    if kit is not None:
        check_kit_folder(Path(kit))
    named = target or recipe.target
    chosen = load_target(named)
    stage.foresee(replace(outlook, files=()))
    inputs = load_inputs(with_choices(recipe, target=target))
    fabric = make_fabric("cpu")
    state = finished_state(place, recipe, len(rows), inputs.fresh, fabric.device)
    _check_bits(chosen, named, state.model)
    report = place.read_json(place.path / "report.json")
    if report is None:
        raise RunFolderError(f"{place.path} has no report.json: go on with its run by --resume first.")
    record: dict[str, Any] = {"notes": []}
    walk = Walk(
        recipe,
        place,
        inputs.data,
        chosen,
        fabric,
        inputs.fresh,
        console or Console(markup=False, emoji=False),
        report,
        [outlook],
        metadata=metadata_of(recipe, inputs.data),
    )
    setup = walk.setup(len(rows), stage, record)
    stage.run(state, setup)
    row: dict[str, Any] = record["export"]
    if kit is not None:
        write_kit_of(row, setup, Path(kit))
    report["exports"] = [old for old in report["exports"] if old["file"] != row["file"]] + [row]
    place.write_json(place.path / "report.json", report)
    return row


def _export_to(file: str) -> Export:
    try:
        return Export(file=file)
    except ValidationError as error:
        raise RecipeError([f"--file: {sentence}" for _, sentence in sentences(error, Export)]) from None


def _check_bits(target: Target, named: str, model: nn.Module) -> None:
    if target.int8_saturates and is_quantized(model) and 8 in _stored_bits(model):
        raise QuantizeError(
            f"{target.name} adds int8 products with saturation and needs weights of 7 bits from the start of "
            f"training, these have 8 in the file: run the recipe again with --target {named}."
        )
    if target.signed_only and 8 in unsigned_bits(model):
        raise QuantizeError(
            f"{target.name} takes signed integers only and needs activations of 7 bits from the start of training, "
            f"these have 8: run the recipe again with --target {named}."
        )


def _stored_bits(model: nn.Module) -> set[int]:
    """The bits that the file holds weights with: one more for DoReFa, whose k bits are odd integers of k + 1."""
    schemes = {entry.get("scheme") for entry in surgery_log(model) if entry["verb"] == "quantize"}
    return {bits + ("dorefa" in schemes) for bits in weight_bits(model).values()}
