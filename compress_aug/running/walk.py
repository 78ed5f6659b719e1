"""Walks the list of stages: runs each, measures, saves; goes on after an interruption where it stopped."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from compress_aug import checkpoint, measure
from compress_aug.data import Data
from compress_aug.errors import (
    BudgetMissed,
    CompressAugError,
    ExportError,
    Interrupted,
    RunFolderError,
    StageError,
    TrainingError,
    UserError,
    WorkError,
)
from compress_aug.progress import EpochProgress, counting
from compress_aug.quantization import is_quantized, mean_weight_bits
from compress_aug.recipe import Recipe
from compress_aug.running.folder import RunFolder, outlook_to_json
from compress_aug.running.judging import accuracies, worse_than_calibrated
from compress_aug.stages import Outlook, Setup, Stage, State
from compress_aug.surgery import freeze
from compress_aug.targets import Target
from compress_aug.training import fit as our_fit
from compress_aug.training import mixed_seed

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Walk:
    """One pass over a recipe's stages.

    fresh:     builds the base model that the log of changes starts from
    rehearsal: tells the stages that nothing is judged: parity and budgets are reported only
    report:    what becomes report.json
    """

    recipe: Recipe
    folder: RunFolder
    data: Data
    target: Target
    fabric: Fabric
    fresh: Callable[[], nn.Module]
    console: Console
    report: dict[str, Any]
    outlooks: list[Outlook]
    fit: Callable[..., Any] = our_fit
    rehearsal: bool = False
    metadata: dict[str, str] = field(default_factory=dict)

    def run(self, state: State, rows: list[dict[str, Any]]) -> State:
        """Run every stage after the first len(rows), which are done. Raises what stages raise, told well."""
        self.report["stages"] = [row["row"] for row in rows]
        done = [row["export"] for row in rows if row.get("export")]
        files = {export["file"] for export in done}
        # Files that were exported again later belong to no stage.
        self.report["exports"] = done + [e for e in self.report["exports"] if rows and e["file"] not in files]
        if len(rows) < len(self.recipe.stages) and self.report["finished"]:
            self.report["finished"] = False
            self._write_report()
        for index in range(len(rows), len(self.recipe.stages)):
            with self._told_well(index):
                state = self._stage(index, state)
        self.report["finished"] = True
        self._write_report()
        misses = [f"{e['file']}: {miss}" for e in self.report["exports"] for miss in e.get("misses", [])]
        if misses and not self.rehearsal and self.fabric.is_global_zero:
            missed = BudgetMissed(misses)
            missed.folder = self.folder.path
            raise missed
        return state

    def _stage(self, index: int, state: State) -> State:
        stage = self.recipe.stages[index]
        path = self.folder.stage(index, stage)
        self.console.print(Text(f"{path.name}  {stage.title()}", style="bold"))
        started = time.perf_counter()
        record: dict[str, Any] = {"notes": []}
        alone = self.fabric.world_size > 1 and not stage.distributed
        if not alone or self.fabric.is_global_zero:
            setup = self.setup(index, stage, record)
            # What a stage draws (first weights of attached layers, say) depends on the seed alone.
            torch.manual_seed(setup.seed)
            state = _run_stage(stage, state, setup)
            if self.fabric.is_global_zero:
                self._finish(index, stage, state, record, time.perf_counter() - started)
        if self.fabric.world_size > 1:
            self.fabric.barrier()
            if alone and not self.fabric.is_global_zero:
                state = self._reloaded(state, path / "model.safetensors")
        return state

    def _reloaded(self, state: State, path: Path) -> State:
        """What the other processes go on with after a stage that only the first one ran."""
        model = checkpoint.rebuild(self.fresh(), path) if path.is_file() else state.model
        kept = {**state.kept, **self.folder.kept_schedules()}
        for name, file in self.folder.kept_models().items():
            if name not in kept:
                kept[name] = freeze(checkpoint.rebuild(self.fresh(), file)).to(self.fabric.device)
        return State(model.to(self.fabric.device), kept)

    def setup(self, index: int, stage: Stage, record: dict[str, Any]) -> Setup:
        """What the stage at `index` gets beside the state; `record` is filled by it."""
        ordinal = sum(earlier.word == stage.word for earlier in self.recipe.stages[:index])
        # Seeded by the how-manieth stage of its kind it is, not by its place: two recipes that differ in a
        # prune between two trainings then see the same images in the same order.
        seed = mixed_seed(self.recipe.seed, stage.word, ordinal)

        return Setup(
            data=self.data,
            target=self.target,
            seed=seed,
            folder=self.folder.path,
            stage_folder=self.folder.stage(index, stage),
            fabric=self.fabric,
            fit=partial(self._fit, stage.title()),
            original=self.report["original"],
            metadata=self.metadata,
            record=record.__setitem__,
            note=partial(self._note, record),
            images=partial(self._images, seed),
            rehearsal=self.rehearsal,
            following=self.recipe.stages[index + 1 :],
            fresh=self.fresh,
            counting=partial(counting, self.console),
            show=self._show,
        )

    def _note(self, record: dict[str, Any], line: str) -> None:
        record["notes"].append(line)
        self._show(line)

    def _show(self, line: str) -> None:
        self.console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)

    def _fit(self, title: str, training: Any, *, checkpoint: Path | None = None) -> Any:
        with EpochProgress(self.console, title) as progress:
            return self.fit(training, checkpoint=checkpoint, progress=progress)

    def _images(self, seed: int, count: int) -> list[Tensor]:
        size = min(count, 128)
        batches = self.data.train.batches(size, order_seed=mixed_seed(seed, "calibrate"))
        chosen = islice(batches, -(-count // size))
        return [self.data.normalise(batch.images.to(self.fabric.device)) for batch in chosen]

    def _finish(self, index: int, stage: Stage, state: State, record: dict[str, Any], seconds: float) -> None:
        """Measure, save, and only then call the stage done."""
        path = self.folder.stage(index, stage)
        path.mkdir(parents=True, exist_ok=True)
        if stage.changes_model:
            about = {"image_shape": self.data.image_shape, "classes": len(self.data.classes)}
            checkpoint.save(state.model, path / "model.safetensors", **about)
        self.folder.keep(state.kept)
        row = self._row(index, stage, state, record, seconds)
        done = {"row": row, "export": record.get("export"), "outlook": outlook_to_json(self.outlooks[index])}
        self.folder.write_json(path / "done.json", done)
        (path / "training.pt").unlink(missing_ok=True)
        self.report["stages"].append(row)
        if done["export"]:
            self.report["exports"].append(done["export"])
        self._write_report()
        self.console.print(f"  {_summary(row)}", highlight=False, markup=False, soft_wrap=True)

    def _row(
        self, index: int, stage: Stage, state: State, record: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        model, note = state.model, partial(self._note, record)
        row: dict[str, Any] = {
            "index": index,
            "word": stage.word,
            "title": stage.title(),
            "seconds": round(seconds, 3),
            "accuracy": None,
            "validation_accuracy": None,
            "loss": record.get("loss"),
        }
        previous = self.report["stages"][-1] if self.report["stages"] else None
        sizes = ("sparsity", "parameters", "nonzero_parameters", "macs", "bits")
        if stage.changes_model or previous is None:
            row |= accuracies(model, self.data, note) if stage.changes_model else {}
            row |= measured(model, self.data.image_shape)
        else:
            row |= {name: previous[name] for name in sizes}
        if stage.word == "train" and not self.rehearsal:
            warning = worse_than_calibrated(row, self.report["stages"], self.data)
            if warning:
                note(warning)
        extra = {k: v for k, v in record.items() if k not in ("export", "loss")}
        return {**row, "magnitude": None, "history": None, **extra}

    def _write_report(self) -> None:
        if self.fabric.is_global_zero:
            self.folder.write_json(self.folder.path / "report.json", self.report)

    @contextmanager
    def _told_well(self, index: int) -> Iterator[None]:
        """Say which stage a mistake was found in; turn Ctrl-C and a full disk into sentences that say how to go on."""
        stage = self.recipe.stages[index]
        where = f"stage {index} ({stage.title()})"
        path = self.folder.path
        again = f"compress-aug run {path}/recipe.yaml --out {path} --resume"
        on = f"Everything up to there is kept in {path}; go on with --resume: {again}"
        if self.rehearsal:
            on = "It was a check: nothing is kept."
        try:
            yield
        except (UserError, TrainingError, ExportError) as error:
            place = self.recipe.places[index] if self.recipe.places else where
            kept = (
                f" The stages before it are kept in {path}: correct what comes next and go on with --resume."
                if index
                else ""
            )
            said = str(error).rstrip(".") + "."
            error.args = (f"{place}: {said}{'' if self.rehearsal else kept}",)
            raise
        except (KeyboardInterrupt, Interrupted) as error:
            said = f" {error}" if str(error) else ""
            raise Interrupted(f"Stopped in {where}.{said} {on}") from None
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise WorkError(f"The disk is full: {where} could not be saved. Make room first. {on}") from error
        except torch.OutOfMemoryError as error:
            raise WorkError(
                f"The device ran out of memory in {where}: choose a smaller batch_size. {on}"
            ) from error


def _run_stage(stage: Stage, state: State, setup: Setup) -> State:
    """Run it; what a stage of the user's own does wrong is told as theirs, with its class."""
    if type(stage).__module__.startswith("compress_aug."):
        return stage.run(state, setup)
    name = f"{type(stage).__module__}:{type(stage).__qualname__}"
    try:
        after: object = stage.run(state, setup)
    except (CompressAugError, OSError):
        raise
    except Exception as error:
        raise StageError(f"The stage {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(after, State):
        raise StageError(f"The stage {name} returned a {type(after).__name__}: its run must return a State.")
    return after


def measured(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The sizes that every row of the report holds."""
    weights = round(mean_weight_bits(model), 3) if is_quantized(model) else 32
    return {
        "sparsity": measure.sparsity(model),
        "parameters": measure.parameters(model),
        "nonzero_parameters": measure.nonzero_parameters(model),
        "macs": measure.macs(model, image_shape),
        "bits": {"weights": weights},
    }


def _summary(row: dict[str, Any]) -> str:
    parts = []
    if row["accuracy"] is not None:
        parts.append(f"test accuracy {100 * row['accuracy']:.2f} %")
    parts.append(f"sparsity {100 * row['sparsity']:.1f} %")
    parts.append(f"{row['parameters']:,} parameters")
    if row["nonzero_parameters"] != row["parameters"]:
        parts.append(f"{row['nonzero_parameters']:,} non-zero")
    return "→ " + ", ".join(parts) + f", {row['seconds']:.1f} s"


def finished_state(
    folder: RunFolder, recipe: Recipe, rows: int, fresh: Callable[[], nn.Module], device: Any
) -> State:
    """The state after the first `rows` stages, rebuilt from the folder."""
    kept: dict[str, object] = {}
    names = set(_kept_after(recipe, rows, folder))
    for name, schedule in folder.kept_schedules().items():
        if name in names:
            kept[name] = schedule
    for name, path in folder.kept_models().items():
        if name in names:
            kept[name] = freeze(checkpoint.rebuild(fresh(), path)).to(device)
    for name in sorted(names - kept.keys()):
        raise RunFolderError(
            f"{folder.path / 'kept'} holds nothing under the name {name} any more: start a new run, or bring its file "
            "back."
        )
    path_or_none = folder.last_checkpoint(recipe, rows)
    model = fresh() if path_or_none is None else checkpoint.rebuild(fresh(), path_or_none)
    return State(model.to(device), kept)


def _kept_after(recipe: Recipe, rows: int, folder: RunFolder) -> list[str]:
    if rows == 0:
        start = folder.read_json(folder.path / "start" / "outlook.json")
        return list(start["kept"]) if start else []
    done = folder.read_json(folder.stage(rows - 1, recipe.stages[rows - 1]) / "done.json")
    return list(done["outlook"]["kept"])
