"""prune_channels: whole channels go, and the model really gets smaller."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_aug.errors import RecipeError
from compress_aug.stages.base import Outlook, Part, Setup, Stage, State, percent
from compress_aug.stages.export import Export
from compress_aug.stages.quantize import Quantize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_aug.surgery import LogEntry

_MEASURED = ("latency_ms", "size_mb")

# A trial's file is thrown away: rough scales are enough, for they change neither its size nor its speed.
_CALIBRATION_IMAGES = 32
_TAYLOR_IMAGES = 256
# One process may be unlucky with its memory for as long as it lives, so it is not one alone that is asked.
_PROCESSES = 3
_REPEATS = 50
# Of a search: nine shares in eighths, and three that halve the gap.
MOST_TRIALS = 12


class Budget(Part):
    """How far channels are cut. Exactly one key."""

    ratio: float | None = Field(None, gt=0, lt=1, description="share of the channels cut in total")
    parameters: float | None = Field(
        None, gt=0, lt=1, description="share of the original parameters that stays"
    )
    macs: float | None = Field(
        None, gt=0, lt=1, description="share of the original multiply-accumulates that stays"
    )
    latency_ms: float | None = Field(
        None, gt=0, description="median for one image that the exported file takes, on the target's runtime"
    )
    size_mb: float | None = Field(None, gt=0, description="the exported file, in 10^6 bytes")

    @model_validator(mode="before")
    @classmethod
    def _a_budget(cls, given: Any) -> Any:
        if not isinstance(given, dict | Budget):
            raise ValueError(
                f"expected what to cut until and how far, such as {{macs: 0.5}} (one of "
                f"{', '.join(cls.model_fields)}), found {given!r}"
            )
        return given

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if len(self.given()) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        return self

    def given(self) -> dict[str, float]:
        return {name: value for name, value in self if value is not None}


class PruneChannels(Stage):
    """Cut whole channels for good: the model really gets smaller."""

    word: ClassVar[str] = "prune_channels"

    until: Budget
    importance: Literal["l1", "l2", "bn_scale", "taylor", "random"] = "l1"
    round_to: int | None = Field(
        None, ge=1, description="channel counts become multiples of it; the target names its default"
    )
    images: int | None = Field(
        None, ge=1, description=f"training images for taylor's gradients; {_TAYLOR_IMAGES} by default"
    )
    form: Literal["float", "quantized"] | None = Field(
        None,
        description="of the file that latency_ms or size_mb is measured on; as the recipe ends by default",
    )

    @model_validator(mode="after")
    def _belong_together(self) -> "PruneChannels":
        if self.images is not None and self.importance != "taylor":
            raise ValueError(
                f"images: only importance taylor reads images, found importance {self.importance}"
            )
        if self.form is not None and not set(self.until.given()) & set(_MEASURED):
            raise ValueError(f"form: only until {' and '.join(_MEASURED)} look at the exported file")
        return self

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.quantized:
            raise RecipeError("prune_channels must come before quantize")
        if outlook.attached:
            raise RecipeError("prune_channels cannot cut a model with attached layers: drop them first")
        ((what, limit),) = self.until.given().items()
        before = outlook.cut.get(what)
        if before is not None and (limit < before if what == "ratio" else limit > before):
            raise RecipeError(
                f"until.{what}: an earlier stage cut to {before:g} already, and {limit:g} asks for less; it is the "
                "total after the stage"
            )
        return replace(outlook, cut={**outlook.cut, what: limit})

    def title(self) -> str:
        ((what, limit),) = self.until.given().items()
        sign = "≤ " if what != "ratio" else ""
        return f"cut channels, {what} {sign}{f'{limit:g}' if what in _MEASURED else percent(limit)}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.channels import cut_channels
        from compress_aug.surgery import surgery_log

        ((what, _),) = self.until.given().items()
        quantize = self._quantize(setup) if what in _MEASURED else None
        showing = setup.counting(f"measuring {what}") if what in _MEASURED else nullcontext()
        with showing as counted:
            model = cut_channels(
                state.model,
                setup.example(),
                until=self.until.given(),
                importance=self.importance,
                round_to=setup.target.round_to if self.round_to is None else self.round_to,
                original=setup.original,
                cost=_counted(_cost(what, quantize, setup), counted) if counted is not None else None,
                batches=_batches(self.images or _TAYLOR_IMAGES, setup)
                if self.importance == "taylor"
                else None,
            )
        _tell(surgery_log(model)[-1], what, quantize, setup)
        return replace(state, model=model)

    @property
    def looks_ahead(self) -> bool:
        # What a trial costs is measured in the form that the file will have.
        return self.form is None and bool(set(self.until.given()) & set(_MEASURED))

    def _quantize(self, setup: Setup) -> Quantize | None:
        """The stage that every trial goes through before it is measured; None if it is measured in float."""
        ends = (stage for stage in setup.following if isinstance(stage, Quantize | Export))
        # A file that is exported before anything is quantized is a float one.
        following = next(ends, None)
        if self.form == "float" or (self.form is None and not isinstance(following, Quantize)):
            return None
        chosen = next((stage for stage in setup.following if isinstance(stage, Quantize)), Quantize())
        return chosen.for_trials(_CALIBRATION_IMAGES)


def _batches(images: int, setup: Setup) -> "Iterator[tuple[Tensor, Tensor]]":
    """(inputs, targets) of training images, without augmentation."""
    from compress_aug.training import mixed_seed

    images = min(images, 64) if setup.rehearsal else images
    size = min(images, 64)
    batches = setup.data.train.batches(size, order_seed=mixed_seed(setup.seed, "taylor"))
    for batch in islice(batches, -(-images // size)):
        yield setup.data.normalise(batch.images), batch.targets


def _cost(what: str, quantize: Quantize | None, setup: Setup) -> "Callable[[nn.Module], float]":
    """Measures what becomes of a model that was cut: written as the recipe's file will be, in a folder that goes."""

    def measured(model: "nn.Module") -> float:
        from compress_aug import deploy, quantization

        if quantize is not None:
            # What it has to say it says again when its turn comes.
            silent = replace(setup, note=lambda line: None)
            _settle_norms(model, setup.images(_CALIBRATION_IMAGES)[0])
            model = quantization.finalize(quantize.run(State(model), silent).model)
        with tempfile.TemporaryDirectory(prefix="compress-aug-trial-") as folder:
            path = Path(folder) / "trial.onnx"
            deploy.write(
                model,
                path,
                image_shape=setup.data.image_shape,
                metadata=setup.metadata,
                form=setup.target.form,
            )
            return path.stat().st_size / 1e6 if what == "size_mb" else _latency_ms(path, setup)

    return _rehearsed(measured) if setup.rehearsal else measured


def _counted(
    measured: "Callable[[nn.Module], float]", counted: Callable[[int, int], None]
) -> "Callable[[nn.Module], float]":
    """The same, and tells how many trials are done, of the most that there can be."""
    done = count(1)
    counted(0, MOST_TRIALS)

    def told(model: "nn.Module") -> float:
        value = measured(model)
        counted(next(done), MOST_TRIALS)
        return value

    return told


def _settle_norms(model: "nn.Module", images: "Tensor") -> None:
    """Give the batch normalisations of a model that was cut the statistics it has now, as training would.

    With those of the whole model its values may vanish, and scales be calibrated that no integer bias fits.
    """
    import torch

    norms = [
        module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.reset_running_stats()
        # The plain mean over batches; of one batch, its own statistics.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.eval()


def _latency_ms(path: Path, setup: Setup) -> float:
    """The median over fresh processes of the median over runs; 0 in a rehearsal, which times nothing."""
    from compress_aug import deploy

    if setup.rehearsal:
        return 0.0
    target = setup.target
    how: dict[str, Any] = {"threads": target.threads, "repeats": _REPEATS, "runtime": target.runtime}
    times = [deploy.latency(path, **how).p50_ms for _ in range(_PROCESSES)]
    return statistics.median(times)


def _rehearsed(measured: "Callable[[nn.Module], float]") -> "Callable[[nn.Module], float]":
    """As if the model that came in missed the budget and the first cut met it: one file is written, for the trial."""
    trials = 0

    def pretended(model: "nn.Module") -> float:
        nonlocal trials
        trials += 1
        if trials == 2:
            measured(model)
        # Finite, because it goes into the log, which is JSON.
        return 1e9 if trials == 1 else 0.0

    return pretended


def _tell(entry: "LogEntry", what: str, quantize: Quantize | None, setup: Setup) -> None:
    """What was reached and what was left alone, to the user and to the report."""
    setup.record("left_alone", entry["left_alone"])
    if entry["followed_in_parts"]:
        setup.note(
            "torch-pruning cannot follow the whole model: cut were the layers whose channels can be followed to their "
            "readers"
        )
    setup.note(f"left whole: {_left_whole(entry['left_alone'])}")
    form = "float" if quantize is None else "quantized"
    if what in _MEASURED and setup.rehearsal:
        setup.note(f"{what} is not measured in a check: one cut was written as a {form} file")
        return
    setup.record("reached", {what: entry["reached"]})
    setup.record("trials", [{"ratio": ratio, "value": value} for ratio, value in entry["trials"]])
    if not any(entry["removed"].values()):
        setup.note(
            f"no channel was cut: that takes a larger ratio, or a round_to below {entry['round_to']}"
            if what == "ratio"
            else f"the model meets {what} as it is: no channel was cut"
        )
    if what not in _MEASURED:
        return
    setup.record("form", form)
    tried = ", ".join(f"{percent(ratio)} {value:.3g}" for ratio, value in sorted(entry["trials"]))
    setup.note(f"{what} {entry['reached']:.3g} as a {form} file; tried (channels cut, {what}): {tried}")
    if what == "latency_ms" and setup.target.proxy:
        setup.note(f"latency_ms was measured on this machine, a proxy for {setup.target.name}")


def _left_whole(left_alone: Mapping[str, Any]) -> str:
    """The layers, those of one reason together: `"fc" (its outputs are those of the model)`."""
    named: dict[str, list[str]] = {}
    for name, reason in left_alone.items():
        named.setdefault(reason, []).append(name)
    parts = []
    for reason, names in named.items():
        others = f" and {len(names) - 2} more" if len(names) > 3 else ""
        shown = ", ".join(f'"{name}"' for name in (names[:2] if others else names))
        parts.append(f"{shown}{others} ({reason})")
    return "; ".join(parts)
