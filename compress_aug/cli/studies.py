"""The commands about studies: study, results."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from compress_aug.cli.base import DataOption, DeviceOption, ModelOption, Sets, new_console, read_choices, say
from compress_aug.errors import CompressAugError, RecipeError, RunFolderError, UserError
from compress_aug.reading import ended

if TYPE_CHECKING:
    from compress_aug.study import Study, StudyResults
    from compress_aug.study.launch import Launch
    from compress_aug.study.words import StudyFile


# Ray itself knows how many have room.
_ON_RAY = 1000


def study(
    file: Annotated[str, typer.Argument(help="A study file, or the name of a shipped one (see `list`).")],
    preset: Annotated[
        str | None, typer.Option(help="How large: one of the file's. cpu by default, gpu where there is one.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's, such as 0,1,2.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A variant; repeat for more. What it waits for runs too.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="For the runs; studies/NAME-PRESET by default.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="For figures, tables and pictures; studies/results by default.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at once (on Ray, on each GPU): as many as cores, one on a GPU, by default."
        ),
    ] = None,
    device: DeviceOption = "auto",
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, or local.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and run nothing.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Try every variant as `check` does, and run nothing.")
    ] = False,
) -> None:
    """Run variants x seeds of a recipe, and end with the table and the picture of a paper."""
    from compress_aug.report.words import plain
    from compress_aug.study import ResultsFile, conduct, load_study
    from compress_aug.study.ahead import look_ahead

    chosen, preset = _device_and_preset(file, preset, device, sets, here=ray is None)
    choices = read_choices(model, data, None, None)
    loaded = load_study(
        file,
        preset=preset,
        seeds=_numbers(seeds),
        only=only or (),
        model=choices["model"],
        data=choices["data"],
        overrides=sets or (),
    )
    out = (out or Path("studies") / f"{loaded.name}-{loaded.preset}").resolve()
    kept = ResultsFile.of(loaded, results or Path("studies") / "results")
    console = new_console()
    title = plain(" ".join(loaded.file.title.split()))
    say(f"{loaded.name}: {title}; {_size(loaded)}; runs in {out}, results in {kept.path}")
    if loaded.note:
        say(f"  note: {plain(loaded.note)}")
    if plan:
        console.print(_plan(loaded))
        return
    if check:
        _check(loaded, chosen)
        return
    if ray is None:
        # On Ray, images and libraries are those of its machines.
        done = kept.found(loaded)
        look_ahead([run for run in loaded.runs if run.name not in done], console)
    launch, at_once, about = _launch(chosen, jobs, ray)
    try:
        conduct(
            loaded,
            out=out,
            results=kept,
            launch=launch,
            at_once=at_once,
            command=_command(file, loaded, seeds, only, model, data, sets),
            about=about,
            console=console,
        )
    finally:
        # What is finished is shown, whatever became of the rest.
        _show(loaded, kept)


def results(
    folder: Annotated[Path, typer.Argument(help="Where studies left their figures.")] = Path(
        "studies/results"
    ),
    out: Annotated[Path | None, typer.Option(help="The page; FOLDER.md by default.")] = None,
) -> None:
    """Write one page of all studies' tables, pictures and verdicts, from the figures of their runs."""
    from compress_aug.study import read_results
    from compress_aug.study.file import read_study_file
    from compress_aug.study.page import write_page

    files = sorted(folder.glob("*.json"))
    if not files:
        raise RecipeError(
            f"There are no results of studies in {folder} (files NAME.json): run a study first."
        )
    page = out or folder.resolve().parent / f"{folder.resolve().name}.md"
    found = [read_results(path) for path in files]
    studies = {}
    for path, one in zip(files, found, strict=True):
        try:
            studies[one.study] = read_study_file(one.file)[0]
        except RecipeError as error:
            raise RecipeError([f"{path}, its study: {problem}" for problem in error.problems]) from None
    for one in found:
        for preset in dict.fromkeys(run.preset for run in one.runs):
            _picture(studies[one.study], one, preset, folder)
    try:
        write_page(found, page, folder, studies.__getitem__, _not_run(one.file for one in found))
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{page} cannot be written: {error}.") from None
    say(f"{len(found)} {'study' if len(found) == 1 else 'studies'}: {page}")


def _not_run(files: Iterable[str]) -> dict[str, str]:
    """Name -> title of the shipped studies that are not among these, if any of these has shipped."""
    from compress_aug.study.file import read_study_file, study_names

    names, ran = study_names(), set(files)
    if ran.isdisjoint(names):
        return {}
    return {name: read_study_file(name)[0].title for name in names if name not in ran}


def _device_and_preset(
    file: str, preset: str | None, device: str, sets: list[str] | None, *, here: bool
) -> tuple[str, str | None]:
    """Where runs train, and which preset that means if none is asked for. here: on this machine, not on Ray's."""
    from compress_aug.running.run import make_fabric
    from compress_aug.study.file import read_study_file

    said, _ = read_study_file(file, sets or ())
    chosen = device
    if here or device == "auto":
        # Told once if it is not there, not by every run.
        found = make_fabric(device).device.type
        chosen = found if device == "auto" else device
    if preset is None:
        preset = "gpu" if chosen.startswith("cuda") else "cpu"
        preset = preset if preset in said.presets else None
    return chosen, preset


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise RecipeError(f'--seeds: expected whole numbers with commas, such as 0,1,2, found "{text}"')
    return list(dict.fromkeys(map(int, parts)))


def _size(loaded: "Study") -> str:
    variants = len({run.variant for run in loaded.runs})
    seeds = len({run.seed for run in loaded.runs})
    named = "without a preset" if loaded.preset == "own" else f"preset {loaded.preset}"
    return f"{named}, {variants} variants x {seeds} seed{'s' * (seeds != 1)}"


def _plan(loaded: "Study") -> Table:
    from compress_aug.report.words import plain
    from compress_aug.study.jobs import jobs
    from compress_aug.study.verdict import title

    todo = jobs(loaded.runs)
    epochs = sum(job.epochs for job in todo)
    alone = sum(sum(run.epochs) for run in loaded.runs)
    table = Table(title=f"{len(todo)} jobs, {epochs} epochs; without sharing {alone}", title_justify="left")
    for name in ("job", "what"):
        table.add_column(name)
    for name in ("stages", "epochs"):
        table.add_column(name, justify="right")
    table.add_column("waits for")
    for job in todo:
        what = plain(title(loaded.file, job.run.variant)) if job.run else "shared by several"
        stages = len(job.recipe["stages"]) - job.done
        table.add_row(job.name, what, str(stages), str(job.epochs), ", ".join(job.waits_for))
    return table


def _check(loaded: "Study", device: str) -> None:
    """Rehearse the recipe of each variant, with the first seed. Raises RecipeError that tells all that fail."""
    from rich.console import Console

    from compress_aug.running import check as check_recipe
    from compress_aug.study.ahead import recipe_of_run

    problems = []
    for run in loaded.runs:
        if run.seed != loaded.runs[0].seed:
            continue
        if run.after:
            say(f"{run.variant}: waits for {', '.join(run.after)}, so it is tried when that is finished")
            continue
        try:
            check_recipe(recipe_of_run(run), device=device, console=Console(quiet=True))
        except CompressAugError as error:
            problems.append(f"variant {run.variant}: {error}")
            continue
        say(f"{run.variant}: every stage works on this model and this data")
    if problems:
        raise RecipeError(problems)


def _launch(device: str, jobs: int | None, ray: str | None) -> "tuple[Launch, int, dict[str, str | int]]":
    """How jobs are done, how many at once, and what to remember of it."""
    from compress_aug.data.assemble import cores
    from compress_aug.study import in_processes
    from compress_aug.study.results import machine

    if ray is not None:
        from compress_aug.study.ray_launch import on_ray

        return (
            on_ray(ray, device, gpus=1 / (jobs or 1) if device.startswith("cuda") else 0),
            _ON_RAY,
            # Which of its machines did what is not asked.
            {"on": "Ray"},
        )
    at_once = jobs or (1 if device.startswith("cuda") else cores())
    threads = max(1, cores() // at_once)
    about = {**machine(device), "at_once": at_once, "threads": threads}
    return in_processes(device, threads), at_once, about


def _command(
    file: str,
    loaded: "Study",
    seeds: str | None,
    only: list[str] | None,
    model: str | None,
    data: str | None,
    sets: list[str] | None,
) -> str:
    """What anybody would type to do the same; where a folder of images lies is their own business."""
    parts = ["compress-aug", "study", file]
    parts += [] if loaded.preset == "own" else ["--preset", loaded.preset]
    parts += ["--seeds", seeds] if seeds else []
    parts += [part for name in only or () for part in ("--only", name)]
    parts += ["--model", model] if model else []
    if data:
        parts += ["--data", f"path/to/{Path(data).resolve().name}" if Path(data).is_dir() else data]
    parts += [part for given in sets or () for part in ("--set", given)]
    return shlex.join(parts)


def _show(loaded: "Study", kept: Any) -> None:
    from compress_aug.report.words import plain
    from compress_aug.study.tables import about_paper, rich_table
    from compress_aug.study.verdict import judged

    found = kept.read()
    # Results of what the study was before are not its results.
    now = {run.hash for run in loaded.runs}
    runs = [run for run in found.runs if run.hash in now and run.preset == loaded.preset]
    if not runs:
        return
    console = new_console()
    console.print(rich_table(loaded.file, runs, f"{loaded.file.title} ({loaded.file.source})"))
    paper = about_paper(loaded.file, runs)
    for line in [*([paper] if paper else []), *judged(loaded.file, runs)]:
        console.print(plain(line), highlight=False, markup=False)
    picture = _picture(loaded.file, found.model_copy(update={"runs": runs}), loaded.preset, kept.path.parent)
    say(
        f"Figures: {kept.path}; picture: {picture}; a page of all studies: compress-aug results {kept.path.parent}"
    )


def _picture(file: "StudyFile", found: "StudyResults", preset: str, folder: Path) -> str:
    """Draw the results of a preset; returns where, or why there is nothing to draw."""
    from compress_aug.study.drawing import draw

    runs = [run for run in found.runs if run.preset == preset]
    seeds = len({run.seed for run in runs})
    note = f"{file.source}; preset {preset}, {seeds} seed{'s' * (seeds != 1)}"
    try:
        return str(draw(file, runs, folder / f"{found.study}-{preset}.png", note))
    except UserError as error:
        return f"none ({ended(str(error)).rstrip('.')})"
