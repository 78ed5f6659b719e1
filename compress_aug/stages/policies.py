"""What the `search` stage does to find learned policies: it makes the members, tells how they do, keeps the picture."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_aug.errors import RecipeError
from compress_aug.policies import Policy, PolicySchedule, Segment, curves
from compress_aug.stages.base import Setup, State

if TYPE_CHECKING:
    from torch import nn

    from compress_aug.data import Data
    from compress_aug.search import Change, FoundPolicies, PolicySlot, Progress
    from compress_aug.stages.search import Search
    from compress_aug.targets import Target
    from compress_aug.training import Training


def find_policies(stage: "Search", state: State, setup: Setup) -> PolicySchedule:
    """The schedule of the best member. The state's model is copied, not changed."""
    from compress_aug.pictures.policy_drawing import draw_policies
    from compress_aug.search import PolicySlot, reduced, search_population

    assert stage.population and stage.every and stage.quantile and stage.resample is not None
    data = reduced(setup.data, stage.train_images, stage.validation_images, is_sample=setup.rehearsal)
    setup.show(
        f"each member trains on {len(data.train):,} images and is judged by {len(data.validation):,} others"
    )
    own = replace(setup, data=data)
    slot = PolicySlot(partial(_change, stage, state, own))
    if setup.rehearsal:
        with _closed(_training(stage, state, own, slot)) as training:
            setup.fit(training)
        return PolicySchedule(stage.train.epochs, (Segment(stage.train.epochs, Policy.none()),))
    with setup.counting(stage.title()) as counted:
        choices: dict[str, Any] = {
            "population": stage.population,
            "every": stage.every,
            "quantile": stage.quantile,
            "resample": stage.resample,
            "seed": setup.seed,
            "folder": setup.stage_folder,
            "told": partial(_tell, stage, setup, counted),
            "about": {"search": "population", "members": stage.population, "data": setup.data.name},
        }
        if stage.driver == "ray":
            from compress_aug.search.ray_driver import search_population_on_ray

            shares: dict[str, Any] = {
                "cpus": stage.cpus or 1.0,
                "gpus": stage.gpus or 0.0,
                "address": stage.address,
            }
            found = search_population_on_ray(
                _Remote.of(stage, state, own), epochs=stage.train.epochs, **shares, **choices
            )
        else:
            with _closed(_training(stage, state, own, slot)) as training:
                found = search_population(training, slot, **choices)
    _record(stage, setup, found)
    title = f"Schedule found by {stage.population} members: {found.schedule.describe()}"
    note = f"validation accuracy {100 * found.score:.2f} % of member {found.best}"
    draw_policies(curves(found.schedule), setup.stage_folder / "search.png", title=title, note=note)
    return found.schedule


@contextmanager
def _closed(training: "Training") -> "Iterator[Training]":
    """The training, which however it ends leaves nothing on the kept teacher, whom later stages use."""
    try:
        yield training
    finally:
        training.finished_model()


def _training(stage: "Search", state: State, setup: Setup, slot: "Change") -> "Training":
    from compress_aug.surgery import copy_model

    return stage.train.training(replace(state, model=copy_model(state.model)), setup, augment=slot)


@dataclass(frozen=True)
class _Remote:
    """What another process makes a member of: plain data, weights as checkpoints, and how to build the base model."""

    stage: "Search"
    fresh: "Callable[[], nn.Module]"
    model: bytes
    models: Mapping[str, bytes]
    others: Mapping[str, object]
    data: "Data"
    target: "Target"
    seed: int
    original: Mapping[str, float]

    @classmethod
    def of(cls, stage: "Search", state: State, setup: Setup) -> "_Remote":
        import torch
        from torch import nn

        if setup.fresh is None:
            raise RecipeError(
                "search: driver: ray needs to know how the model is built; run it from a recipe"
            )
        models = {name: _packed(kept) for name, kept in state.kept.items() if isinstance(kept, nn.Module)}
        others = {name: kept for name, kept in state.kept.items() if name not in models}
        data = setup.data.to(torch.device("cpu"))
        packed = _packed(state.model)
        return cls(stage, setup.fresh, packed, models, others, data, setup.target, setup.seed, setup.original)

    def __call__(self) -> "tuple[Training, PolicySlot]":
        from lightning_fabric import Fabric

        from compress_aug.search import PolicySlot
        from compress_aug.surgery import freeze

        fabric = Fabric(accelerator="auto", devices=1)
        models = {name: freeze(self._unpacked(kept)).to(fabric.device) for name, kept in self.models.items()}
        state = State(self._unpacked(self.model).to(fabric.device), {**self.others, **models})
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(
                data=self.data,
                target=self.target,
                seed=self.seed,
                folder=Path(folder),
                stage_folder=Path(folder),
                fabric=fabric,
                fit=lambda training, **keys: [],
                original=self.original,
                metadata={},
                record=lambda key, value: None,
                note=lambda line: None,
                images=lambda count: [],
            )
            slot = PolicySlot(partial(_change, self.stage, state, setup))
            return self.stage.train.training(state, setup, augment=slot), slot

    def _unpacked(self, packed: bytes) -> "nn.Module":
        from compress_aug import checkpoint

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(packed)
            return checkpoint.rebuild(self.fresh(), path)


def _packed(model: "nn.Module") -> bytes:
    from compress_aug import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(model, path)
        return path.read_bytes()


def _change(stage: "Search", state: State, setup: Setup, policy: Policy) -> Any:
    epochs = stage.train.epochs
    return stage.train.augment.build(
        state, setup, epochs=epochs, learned=PolicySchedule(epochs, (Segment(epochs, policy),))
    )


def _tell(stage: "Search", setup: Setup, counted: Any, progress: "Progress") -> None:
    from compress_aug.search import spread

    counted(progress.done, progress.total)
    if not progress.taken and progress.done < progress.total:
        return
    taken = ", ".join(f"{target} takes over from {source}" for target, source in progress.taken.items())
    line = f"epoch {progress.epoch}/{stage.train.epochs}: {spread(progress.scores)}"
    setup.show(f"{line}; {taken}" if taken else line)


def _record(stage: "Search", setup: Setup, found: "FoundPolicies") -> None:
    setup.record(
        "search",
        {
            "kind": "population",
            "kept": stage.keep,
            "best_member": found.best,
            "validation_accuracy": found.score,
            "takeovers": found.taken,
            "policies": len(found.schedule.segments),
            "curves": [list(curve) for curve in found.curves],
        },
    )
    setup.note(
        f"kept as {stage.keep}: {found.schedule.describe()}, of member {found.best} with {100 * found.score:.2f} % on "
        f"validation images, after {found.taken} takeovers"
    )
