"""begin_like: a new run whose first stages another run has done already, so that they are not done twice."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compress_aug.errors import RunFolderError
from compress_aug.reading import read_yaml
from compress_aug.recipe import Recipe
from compress_aug.running.folder import RunFolder, check_resumable
from compress_aug.running.stored import portable, store
from compress_aug.stages import Export, Stage


def shareable(stages: Sequence[Stage]) -> int:
    """How many of the first stages may be shared: up to one that looks ahead, or an export, which writes into the
    folder of its own run.

    >>> shareable([Train(epochs=1), Export(), Train(epochs=1)])
    1
    """
    alone = (number for number, stage in enumerate(stages) if stage.looks_ahead or isinstance(stage, Export))
    return next(alone, len(stages))


def begin_like(recipe: Recipe, source: str | Path, out: str | Path) -> int:
    """Make a run's folder whose first stages are those of a finished run; `run(resume=True)` goes on behind them.

    recipe: its first stages, model, data and seed are those of the other run
    source: the folder of the other run, all of whose stages are done; it stays as it is
    out:    new; the large files are hard links where the disk allows it, since no run changes a file of its own

    Returns how many stages are done. A run that goes on so equals one that did everything by itself, because what
    a stage does depends on the stages before it, the seed and the data alone, but for stages that look ahead
    (`Stage.looks_ahead`), which must not be among those that are shared.

    Raises RunFolderError if the runs begin differently, or a stage is among them that is not `shareable`.

    >>> from rich.console import Console
    >>> from compress_aug.running import run
    >>> done = run(recipe, model=model, data=data, out="shared", device="cpu", console=Console(quiet=True))
    >>> begin_like(recipe, "shared", "mine")
    2
    """
    there, here = RunFolder(Path(source)), RunFolder(Path(out))
    # What a run is called decides nothing that it does.
    name = read_yaml(there.path / "recipe.yaml").data["name"]
    check_resumable(there, portable(replace(recipe, name=name)))
    done = len(there.done_rows(recipe))
    most = shareable(recipe.stages)
    if done > most:
        raise RunFolderError(
            f"{there.path} cannot be shared: {recipe.stages[most].word} depends on the stages behind it, or leaves "
            "files that another run would lack."
        )
    temporary = here.path.with_name(f".{here.path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    begun = [there.stage(index, stage) for index, stage in enumerate(recipe.stages[:done])]
    for folder in (*begun, there.path / "kept", there.path / "start"):
        if folder.is_dir():
            shutil.copytree(folder, temporary / folder.name, copy_function=_linked)
    store(recipe, RunFolder(temporary))
    portable(recipe).save(temporary / "recipe.yaml")
    temporary.replace(here.path)
    return done


def _linked(source: str, goal: str) -> None:
    try:
        os.link(source, goal)
    except OSError:
        shutil.copy2(source, goal)
