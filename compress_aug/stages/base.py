"""What a stage is: a frozen pydantic class that can foresee itself without torch, and run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from compress_aug.progress import counting

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from compress_aug.data import Data
    from compress_aug.targets import Target

FLOAT_BITS = 32

KEPT_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
"""What something may be kept under: it becomes a file's name."""


def percent(share: float) -> str:
    """A share in [0, 1] as users read it.

    >>> percent(0.4), percent(0.125)
    ('40 %', '12.5 %')
    """
    return f"{100 * share:.3g} %"


@dataclass(frozen=True)
class Outlook:
    """What is known about the model before anything runs.

    sparsity:      total share of prunable weights that are zero, in [0, 1)
    weight_bits, activation_bits: nominal bits (32 = float)
    attached:      how many additional blocks hang on the model now
    kept:          name -> what was kept under it, "model", "schedule" (of a magnitude) or "policy" (learned)
    epochs:        trained so far
    cut:           what channels were cut to: {"macs": 0.5}; how many, only the model can tell
    files:         what was exported so far
    zero_weights:  whether a weight can be zero: not on the levels of DoReFa
    auto_bits:     the bits of weights are picked when the stage runs; weight_bits is the most that there may be
    int8_saturates: of the recipe's target: where weights of 8 bits get 7
    signed_only:   of the recipe's target: where activations of 8 bits get 7
    """

    sparsity: float = 0.0
    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    attached: int = 0
    kept: Mapping[str, str] = field(default_factory=dict)
    epochs: int = 0
    cut: Mapping[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    zero_weights: bool = True
    auto_bits: bool = False
    int8_saturates: bool = False
    signed_only: bool = False

    @property
    def quantized(self) -> bool:
        return min(self.weight_bits, self.activation_bits) < FLOAT_BITS


@dataclass(frozen=True)
class State:
    """What flows from stage to stage.

    model: the network as it is now, on the device
    kept:  what earlier stages kept under a name: frozen models, found schedules
    """

    model: "nn.Module"
    kept: Mapping[str, object] = field(default_factory=dict)


_uncounted = partial(counting, None)


@dataclass(frozen=True)
class Setup:
    """What stays the same while stages come and go.

    seed:         of this stage: the recipe's seed, mixed with the stage's place
    folder:       the run's folder; exported files go here
    stage_folder: this stage's own folder, for what it must find again after an interruption
    fit:          trains a `Training` to its end; `fit(training, checkpoint=path)` gives its history
    original:     "parameters" and "macs" of the model that entered the recipe
    metadata:     written into exported files
    record:       adds a key to this stage's row of report.json
    note:         says one line to the user and keeps it in the stage's row
    show:         says one line to the user and keeps it nowhere, such as a table of what `record` keeps
    rehearsal:    nothing is trained or judged, only tried: what a check of the recipe runs with
    images:       normalised float batches (N, C, H, W) of the training images, as many as asked for
    following:    the stages after this one: in which form a file will be, say
    fresh:        builds the base model that the model's log of changes starts from, for other processes
    counting:     a bar for long work: title -> a context that gives a function to tell (done, total)
    """

    data: "Data"
    target: "Target"
    seed: int
    folder: Path
    stage_folder: Path
    fabric: "Fabric"
    fit: Callable[..., list[dict[str, Any]]]
    original: Mapping[str, float]
    metadata: Mapping[str, str]
    record: Callable[[str, object], None]
    note: Callable[[str], None]
    images: "Callable[[int], list[Tensor]]"
    rehearsal: bool = False
    following: "Sequence[Stage]" = ()
    fresh: "Callable[[], nn.Module] | None" = None
    counting: Callable[[str], AbstractContextManager[Callable[[int, int], None]]] = _uncounted
    show: Callable[[str], None] = lambda line: None

    def example(self) -> "Tensor":
        """One normalised black image (1, C, H, W) on the run's device: enough to follow the model's layers."""
        import torch

        raw = torch.zeros(1, *self.data.image_shape, dtype=torch.uint8, device=self.fabric.device)
        return self.data.normalise(raw)


class Part(BaseModel):
    """A group of keys within a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Stage(Part):
    """One step of a recipe: the YAML word, its keys and what it does.

    A stage of your own subclasses this, sets `word` and writes `run`:

    >>> class Smooth(Stage):
    ...     word = "smooth"
    ...     alpha: float = 0.1
    ...     def run(self, state, setup):
    ...         return state

    In a recipe it is named with a colon, `"my_pkg.stages:Smooth": {alpha: 0.2}`.
    """

    word: ClassVar[str]
    # Whether every process of a multi-GPU run takes part; the others wait while the first one works.
    distributed: ClassVar[bool] = False
    # Whether the model is another one afterwards, so that it is measured and saved anew.
    changes_model: ClassVar[bool] = True

    @property
    def looks_ahead(self) -> bool:
        """Whether the stages behind this one (`Setup.following`) decide what it does.

        Runs that begin with the same stages share their results, but for these.
        """
        return False

    def foresee(self, outlook: Outlook) -> Outlook:
        """What will be known after this stage. Pure and quick. Raises RecipeError if it cannot follow."""
        return outlook

    def run(self, state: State, setup: Setup) -> State:
        """Do it. Owns the state's model, may change it, and returns the state to go on with."""
        raise TypeError(f"the stage {type(self).__name__} has no run(state, setup)")

    def title(self) -> str:
        """A few words for tables: `prune to 40 %`."""
        return self.word

    def with_files(self, place: Callable[[str], str]) -> "Stage":
        """The same stage with each file that it names found elsewhere. place: name as given -> name as it is now.

        A run copies these files into its folder, so that it stays whole without them.
        """
        return self

    def plan(self) -> dict[str, str]:
        """The cells of the plan that only this stage fills: epochs, lr, magnitude, objective."""
        return {}
