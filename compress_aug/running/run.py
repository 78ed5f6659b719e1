"""run: a recipe on a model and data, in a folder, from the start or from where it stopped; load: the model again."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from compress_aug import checkpoint, deploy
from compress_aug.data import Data, load_data
from compress_aug.errors import ModelError, RecipeError, RunFolderError
from compress_aug.models import check_fits, load_model
from compress_aug.native import kernels
from compress_aug.progress import counting
from compress_aug.recipe import Recipe
from compress_aug.running.ahead import check_ahead
from compress_aug.running.folder import (
    RunFolder,
    check_resumable,
    found_folder,
    make_writable,
    new_folder,
)
from compress_aug.running.judging import accuracies
from compress_aug.running.start import (
    Began,
    beginning_of,
    check_data_of_start,
    copy_start,
    prepared,
    run_of,
    told,
)
from compress_aug.running.stored import at_home, check_same_files, portable, store
from compress_aug.running.walk import Walk, finished_state, measured
from compress_aug.stages import State
from compress_aug.surgery import copy_model
from compress_aug.targets import Target, load_target
from compress_aug.training import fit as our_fit

Fresh = Callable[[], nn.Module]

_VERSIONS = ("compress-aug", "torch", "torchvision", "brevitas", "torch-pruning", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Result:
    """What a run ends with.

    model:  the compressed model, in eval mode, on the CPU
    report: the content of report.json
    folder: where everything lies
    process: which process of a run on several devices this is; 0 is the one that wrote the files
    """

    model: nn.Module
    report: dict[str, Any]
    folder: Path
    process: int = 0


def run(
    recipe: Recipe | str | Path,
    *,
    model: Any = None,
    data: Any = None,
    out: str | Path | None = None,
    target: str | None = None,
    device: str = "auto",
    devices: int = 1,
    seed: int | None = None,
    resume: bool = False,
    start_from: str | Path | None = None,
    fit: Callable[..., Any] = our_fit,
    console: Console | None = None,
) -> Result:
    """Run a recipe.

    recipe:     a Recipe, a path, or the name of a shipped one
    model:      what to compress: a module, a name, "package.module:function"; the recipe's own by default
    data:       a Data, a pair of data sets, a name, {"folder": path}; the recipe's own by default
    out:        the run's folder, new or empty; runs/NAME by default
    device:     "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1";  devices: how many of them
    resume:     go on with the run in `out` (or the newest runs/NAME); it ends with the very same result
    start_from: the folder of a finished run whose compressed model this recipe starts on
    fit:        trains the `Training` of each `train` stage to its end, in the way of `compress_aug.fit`. A `search`
                trains its candidates by loops of its own, and does not call it

    Raises UserError for what the user can put right (nothing is written then), WorkError where the work fails,
    BudgetMissed after everything is written, Interrupted at Ctrl-C.

    >>> result = run(recipe, model=model, data=data, device="cpu", console=Console(quiet=True))
    >>> result.report["stages"][1]["word"]
    'prune'
    """
    console = console or Console(markup=False, emoji=False)
    began = beginning_of(recipe, start_from, resume=resume, out=out)
    recipe, start = prepared(recipe, began, model=model, data=data, target=target, seed=seed)
    outlooks = recipe.foresee(start)
    fabric = make_fabric(device, devices)
    loaded = load_inputs(recipe, console)
    if began:
        check_data_of_start(began, loaded.data)
    check_ahead(recipe, loaded.data, done=_done(recipe, out) if resume else 0, devices=devices)
    fabric.launch()
    folder = _folder(recipe, fabric, Path(out) if out is not None else None, resume, console)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    state, rows, report = _begin(recipe, folder, loaded, fabric, None if resume else began)
    recipe = at_home(recipe, folder)
    _introduce(console, recipe, loaded, fabric, folder, len(rows))
    if began and not resume:
        console.print(f"  {told(began)}", highlight=False, markup=False, soft_wrap=True)
    walk = Walk(
        recipe,
        folder,
        loaded.data.to(fabric.device),
        loaded.target,
        fabric,
        loaded.fresh,
        console,
        report,
        outlooks,
        fit=fit,
        metadata=metadata_of(recipe, loaded.data),
    )
    state = walk.run(state, rows)
    return Result(state.model.cpu().eval(), walk.report, folder.path, fabric.global_rank)


@dataclass(frozen=True)
class Inputs:
    """What a recipe works on, loaded and found to fit.

    fresh: builds the base model, equal each time;  given: whether the model came in as an object
    """

    data: Data
    target: Target
    fresh: Fresh
    given: bool


def load_inputs(recipe: Recipe, console: Console | None = None) -> Inputs:
    """Load the recipe's data, target and model, and put one image through the model.

    console: shows how far a large folder is decoded

    Raises UserError (DataError, ModelError, ...) with what is missing or does not fit.
    """
    for name, example in (("model", "resnet20"), ("data", "cifar10")):
        if getattr(recipe, name) is None:
            raise RecipeError(f"{recipe.name}: no {name} is given: write `{name}: {example}` or use --{name}")
    target = load_target(recipe.target)
    with counting(console, "reading images") as counted:
        data = load_data(recipe.data, seed=recipe.seed, on_progress=counted)
    fresh = base_factory(recipe.model, data.image_shape, len(data.classes), recipe.seed)
    check_fits(fresh(), data.image_shape, len(data.classes))
    return Inputs(data, target, fresh, isinstance(recipe.model, nn.Module))


def base_factory(spec: Any, image_shape: tuple[int, int, int], classes: int, seed: int) -> Fresh:
    """A function that builds the same fresh model each time it is called: from a seed, or from an untouched copy."""
    if isinstance(spec, nn.Module):
        untouched = copy_model(spec).cpu()
        return lambda: copy_model(untouched)

    def build() -> nn.Module:
        # Forked, so that building a teacher's base in between does not move anybody else's random numbers.
        # The copy is for functions that give the same object again: it must stay as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return copy_model(load_model(spec, classes=classes, image_shape=image_shape))

    return build


def make_fabric(device: str = "auto", devices: int = 1) -> Fabric:
    """lightning-fabric for a device name. Raises RecipeError for a device that is not there."""
    kind, colon, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda") or (colon and not number.isdigit()):
        raise RecipeError(f'--device: expected auto, cpu, cuda or cuda:N, found "{device}"')
    count = torch.cuda.device_count() if kind == "cuda" else devices
    if kind == "cuda" and (count < devices or (colon and int(number) >= count)):
        raise RecipeError(f"--device {device} with {devices} of them: this machine has {count} CUDA devices")
    if colon and devices > 1:
        raise RecipeError(
            f"--device {device} names one device and --devices {devices}: leave out one of them"
        )
    chosen: Any = [int(number)] if colon and kind == "cuda" else devices
    return Fabric(accelerator=kind, devices=chosen, strategy="ddp" if devices > 1 else "auto")


def _done(recipe: Recipe, out: str | Path | None) -> int:
    folder = found_folder(recipe.name, Path(out) if out is not None else None)
    return len(folder.done_rows(recipe))


def _folder(recipe: Recipe, fabric: Fabric, out: Path | None, resume: bool, console: Console) -> RunFolder:
    """Chosen by the first process and told to the others, which must not choose a second one."""
    told: tuple[str, str] = ("", "")
    if fabric.is_global_zero:
        try:
            folder = make_writable(found_folder(recipe.name, out) if resume else new_folder(recipe.name, out))
            if resume:
                changed = check_resumable(folder, portable(recipe))
                check_same_files(recipe, folder, may_add=bool(changed))
                if changed:
                    _save(recipe, folder)
                for line in changed:
                    console.print(f"  note: {line}", highlight=False, markup=False, soft_wrap=True)
            told = (str(folder.path), "")
        except RunFolderError as error:
            told = ("", str(error))
    path, problem = fabric.broadcast(told) if fabric.world_size > 1 else told
    if problem:
        raise RunFolderError(problem)
    return RunFolder(Path(path))


def _begin(
    recipe: Recipe, folder: RunFolder, inputs: Inputs, fabric: Fabric, began: Began | None
) -> tuple[State, list[dict[str, Any]], dict[str, Any]]:
    """The state to go on from, the rows of the stages that are done, and the report so far."""
    if fabric.is_global_zero:
        if began is not None:
            copy_start(began, folder)
        if not (folder.path / "recipe.yaml").exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            # Last, because a folder with a recipe.yaml can be resumed.
            store(recipe, folder)
            _save(recipe, folder)
    fabric.barrier()
    rows = folder.done_rows(recipe)
    state = finished_state(folder, recipe, len(rows), inputs.fresh, fabric.device)
    report = folder.read_json(folder.path / "report.json")
    if report is None:
        # The first process alone exports and times the model that came in.
        if fabric.is_global_zero:
            report = new_report(recipe, inputs, fabric, folder)
            folder.write_json(folder.path / "report.json", report)
        report = fabric.broadcast(report) if fabric.world_size > 1 else report
    fabric.barrier()
    return state, rows, report


def _save(recipe: Recipe, folder: RunFolder) -> None:
    portable(recipe).save(folder.path / ".recipe.yaml.part")
    (folder.path / ".recipe.yaml.part").replace(folder.path / "recipe.yaml")


def new_report(
    recipe: Recipe, inputs: Inputs, fabric: Fabric, folder: RunFolder, *, with_file: bool = True
) -> dict[str, Any]:
    """The head of report.json, with the model that came in measured; its file too, if `with_file`."""
    data, target = inputs.data, inputs.target
    start = folder.last_checkpoint(recipe, 0)
    model = inputs.fresh() if start is None else checkpoint.rebuild(inputs.fresh(), start)
    return {
        "version": 1,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "device": str(fabric.device),
        "devices": fabric.world_size,
        "augmentation": augmenter(fabric),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "data": {
            "name": data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "classes": len(data.classes),
        },
        "target": target.model_dump(),
        "original": _original(
            model, recipe, inputs, folder, known=inputs.given or start is not None, with_file=with_file
        ),
        "stages": [],
        "exports": [],
        "finished": False,
    }


def augmenter(fabric: Fabric) -> str:
    """What carries out the augmentation on this device, for the report; all give the same images."""
    found = kernels() if fabric.device.type == "cpu" else None
    return f"compiled kernels ({found.level})" if found else "torch"


def _original(
    model: nn.Module, recipe: Recipe, inputs: Inputs, folder: RunFolder, *, known: bool, with_file: bool
) -> dict[str, Any]:
    """Sizes of the model that came in; its file and its time too, if the recipe exports at all."""
    data = inputs.data
    sizes = measured(model, data.image_shape)
    row: dict[str, Any] = {
        "parameters": sizes["parameters"],
        "macs": sizes["macs"],
        "bytes": None,
        "latency_ms": None,
        # A model fresh from its factory has learned nothing yet.
        "accuracy": accuracies(model, data).get("accuracy") if known else None,
    }
    if with_file and any(stage.word == "export" for stage in recipe.stages):
        path = folder.path / "original.onnx"
        deploy.write(model, path, image_shape=data.image_shape, metadata=metadata_of(recipe, data))
        times = deploy.latency(path, threads=inputs.target.threads, runtime=inputs.target.runtime)
        row["bytes"] = path.stat().st_size
        row["latency_ms"] = {"p50": times.p50_ms, "p95": times.p95_ms}
    return row


def metadata_of(recipe: Recipe, data: Data) -> dict[str, str]:
    """What an exported file tells the device: how to prepare an image and what the outputs are called."""
    about = deploy.image_metadata(
        image_shape=data.image_shape, mean=data.mean, std=data.std, classes=data.classes
    )
    return {"recipe": recipe.name, "data": data.name, **about}


def _introduce(
    console: Console, recipe: Recipe, inputs: Inputs, fabric: Fabric, folder: RunFolder, done: int
) -> None:
    data = inputs.data
    number = f"{fabric.world_size} x " if fabric.world_size > 1 else ""
    console.print(
        f"{recipe.name} on {data.name}: {len(data.train):,} images to train on, "
        f"{len(data.validation):,} to validate, {len(data.test):,} to test; {len(data.classes)} classes; "
        f"{number}{fabric.device.type}, {torch.get_num_threads()} threads; "
        f"augmentation by {augmenter(fabric)}; in {folder.path}",
        highlight=False,
        markup=False,
        emoji=False,
    )
    for line in recipe.warnings():
        console.print(f"  note: {line}", highlight=False, markup=False, soft_wrap=True)
    if done:
        console.print(f"  {done} of {len(recipe.stages)} stages are done already", highlight=False)


def load(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    replay: Mapping[str, checkpoint.Replay] | None = None,
) -> nn.Module:
    """The compressed model of a run, rebuilt on a fresh model from the log and the weights. No pickle is read.

    folder: of a run, finished or not (then the model as it was after the last finished stage)
    model:  the base model, untouched, if the recipe names none (it was an object) or to avoid importing what it names
    replay: see `compress_aug.checkpoint.rebuild`

    Returns the model in eval mode on the CPU. Raises RunFolderError if the folder and the model do not fit.

    >>> result = run(recipe, model=model, data=data, device="cpu", console=Console(quiet=True))
    >>> compressed = load(result.folder, model=model)
    """
    if model is not None and not isinstance(model, nn.Module):
        raise ModelError(
            f"load: model must be a module, untouched, such as MyNet(); found {model!r}. Leave it out where the run's "
            "recipe names the model."
        )
    place = RunFolder(Path(folder))
    recipe, last, _ = run_of(place)
    if model is None:
        if recipe.model is None:
            raise ModelError(
                f"The model of {folder} was an object: give an untouched one, load(folder, model=...)."
            )
        about = checkpoint.read_extra(last)
        model = base_factory(recipe.model, tuple(about["image_shape"]), about["classes"], recipe.seed)()
    else:
        model = copy_model(model)
    return checkpoint.rebuild(model, last, replay).cpu().eval()
