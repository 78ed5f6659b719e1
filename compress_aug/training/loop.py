"""Training: one stage of training as an object that can be stopped after any step and gone on with."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from compress_aug import measure
from compress_aug.batch import Batch
from compress_aug.data import Data
from compress_aug.errors import ModelError, TrainingError
from compress_aug.precision import choose_precision
from compress_aug.quantization import is_quantized, learned_scales
from compress_aug.training.freezing import Freezing
from compress_aug.training.objective import CrossEntropy, Objective
from compress_aug.training.settings import Settings, build_optimizer, lr_factor, mixed_seed

History = list[dict[str, Any]]


class Training:
    """One stage of training as an object that can be stopped after any step and gone on with.

    model:     trained in place
    objective: see `Objective`; plain cross entropy by default
    augment:   (batch, magnitude, epoch, seed) -> batch, on raw images; none by default, not even crop and flip.
               It may have prepare(training), close_epoch() -> numbers for the history, state_dict(),
               load_state_dict(state): the teacher's filter does. Its strength(progress), if it has one, takes
               the place of `magnitude`.
    magnitude: progress in [0, 1] -> 0..30, or None for no RandAugment
    fabric:    lightning-fabric's device and processes; the model's own device by default
    on_step:   called with (model, progress) before each step, for gradual change inside one optimizer run
    note:      is told, in one line, what was chosen and why

    >>> training = Training(model, data, settings=Settings(epochs=2, batch_size=16))
    >>> while training.epochs_done < 2:
    ...     _ = training.epoch()
    >>> model = training.finished_model()
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        objective: Objective | None = None,
        settings: Settings = Settings(epochs=1),
        *,
        augment: Callable[[Batch, int | None, int, int], Batch] | None = None,
        magnitude: Callable[[float], int | None] = lambda progress: None,
        seed: int = 0,
        fabric: Fabric | None = None,
        on_step: Callable[[nn.Module, float], None] | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.fabric = fabric or Fabric(accelerator="auto", devices=1)
        self.data = data.to(self.fabric.device)
        self.objective = objective or CrossEntropy()
        self.settings = settings
        self.seed = seed
        self.note = note
        self.history: History = []
        self._augment: Any = augment
        self._magnitude: Callable[[float], int | None] = getattr(augment, "strength", magnitude)
        self._on_step = on_step
        self._step = 0
        self._started = time.perf_counter()
        self._tally = _Tally()
        self._best: tuple[float, dict[str, Tensor]] | None = None
        chosen = choose_precision(
            self.fabric.device, settings.precision, quantized=is_quantized(model), sample=data.image_shape
        )
        note(chosen.reason)
        images, used = len(data.train), self.steps_per_epoch * settings.batch_size
        if used < 0.9 * images:
            note(
                f"{used} of {images} images an epoch, in whole batches; a smaller batch_size than "
                f"{settings.batch_size} uses more"
            )
        self._dtype = chosen.autocast
        self.layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
        self.model = model.to(self.fabric.device).to(memory_format=self.layout)
        self._prepare_parts()
        self._freezing = Freezing(self.model, settings, note)
        extra = list(getattr(self.objective, "parameters", tuple)())
        self.optimizer: Any
        self._wrapped, self.optimizer = self.fabric.setup(
            self.model,
            build_optimizer([*self.model.parameters(), *extra], settings, learned_scales(self.model)),
        )

    def _prepare_parts(self) -> None:
        teacher = getattr(self.objective, "teacher", None)
        if isinstance(teacher, nn.Module):
            teacher.to(self.fabric.device).to(memory_format=self.layout)
        parts: tuple[Any, ...] = (self.objective, self._augment)
        for part in parts:
            if hasattr(part, "prepare"):
                part.prepare(self)

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def steps_per_epoch(self) -> int:
        return self.data.train.steps(self.settings.batch_size, drop_last=True, world=self.fabric.world_size)

    def epoch(self, each_step: Callable[["Training"], bool] = lambda training: False) -> bool:
        """Train for one epoch (or the rest of one) and validate; False if `each_step` asked for a pause.

        Raises TrainingError when the loss is no longer a number.
        """
        epoch = self.epochs_done
        if hasattr(self.objective, "begin") and not self.objective.begin(self, each_step):
            return False
        if self._step == 0:
            torch.manual_seed(mixed_seed(self.seed, "epoch", epoch, self.fabric.global_rank))
            self._tally = _Tally()
        self.model.train()
        self._started = time.perf_counter()
        for batch in self._batches(epoch):
            self._one_step(batch, epoch)
            self._step += 1
            if each_step(self):
                self._tally.seconds += time.perf_counter() - self._started
                return False
        self._tally.seconds += time.perf_counter() - self._started
        self._close_epoch(epoch)
        return True

    def _batches(self, epoch: int) -> Iterator[Batch]:
        batches = self.data.train.batches(
            self.settings.batch_size,
            order_seed=mixed_seed(self.seed, "order", epoch),
            drop_last=True,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        return islice(batches, self._step, None)

    def so_far(self) -> dict[str, Any]:
        """The row of the epoch under way: loss, train_accuracy, magnitude, lr, images_per_second."""
        running = replace(self._tally, seconds=self._tally.seconds + time.perf_counter() - self._started)
        return running.row()

    def progress(self) -> float:
        """How much of the stage is done, in [0, 1)."""
        return (self.epochs_done + self._step / self.steps_per_epoch) / self.settings.epochs

    def _one_step(self, batch: Batch, epoch: int) -> None:
        progress = self.progress()
        if self._on_step:
            self._on_step(self.model, progress)
        if hasattr(self.objective, "advance"):
            self.objective.advance(progress)
        lr = self.settings.lr * lr_factor(self.settings.lr_schedule, progress, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        magnitude = self._magnitude(progress)
        batch = batch.to(self.fabric.device)
        if self._augment:
            batch = self._augment(batch, magnitude, epoch, self.seed)
        inputs = self.inputs_of(batch.images)
        batch = replace(batch, inputs=inputs)
        self._freezing.hold_statistics(progress)
        with self.autocast():
            logits = self._wrapped(inputs)
            if not isinstance(logits, Tensor):
                raise ModelError(
                    f"In training the model returns a {type(logits).__name__}: expected one tensor (images, classes)."
                )
            losses = self.objective.loss(batch, logits)
        self._descend(losses, progress)
        self._tally.add(losses, logits, batch.targets, magnitude, lr)

    def inputs_of(self, images: Tensor) -> Tensor:
        """Raw images uint8 (N, C, H, W) as the model takes them: normalised, in the layout of this training."""
        return self.data.normalise(images).contiguous(memory_format=self.layout)

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format of this training, for a forward pass beside that of the loop."""
        # Plain autocast and not fabric's precision: fabric is one for the whole run, the choice one per stage.
        kind = self.fabric.device.type
        return torch.autocast(kind, dtype=self._dtype or torch.bfloat16, enabled=self._dtype is not None)

    def _descend(self, losses: dict[str, Tensor], progress: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if hasattr(self.objective, "backward"):
            self.objective.backward(losses, self)
        else:
            self.fabric.backward(torch.stack(list(losses.values())).sum())
        self._freezing.hold_scales(progress)
        if self.settings.clip_norm is not None:
            self.fabric.clip_gradients(self._wrapped, self.optimizer, max_norm=self.settings.clip_norm)
        self.optimizer.step()

    def _close_epoch(self, epoch: int) -> None:
        row = {"epoch": epoch + 1, **self._tally.over_all(self.fabric).row()}
        if not math.isfinite(row["loss"]):
            raise TrainingError(
                f"The loss became {row['loss']} in epoch {epoch + 1}: try a smaller lr (it was "
                f"{self.settings.lr:g}) or clip_norm: 1.0."
            )
        row["validation_accuracy"] = self.validate()
        row |= self._augment_row()
        self.history.append(row)
        self._step = 0
        score = row["validation_accuracy"]
        if (
            self.settings.weights == "best"
            and score is not None
            and (not self._best or score > self._best[0])
        ):
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self._best = (score, weights)

    def _augment_row(self) -> dict[str, float]:
        """What the augmentation has to say of the epoch, as means over all processes."""
        row = self._augment.close_epoch() if hasattr(self._augment, "close_epoch") else {}
        if not row:
            return {}
        means = self.fabric.all_reduce(
            torch.tensor(list(row.values()), dtype=torch.float64, device=self.fabric.device),
            reduce_op="mean",
        )
        assert isinstance(means, Tensor)
        return dict(zip(row, means.tolist(), strict=True))

    def validate(self) -> float | None:
        """Accuracy on the validation split in [0, 1], over all processes; None if there is no such split."""
        if not len(self.data.validation):
            return None
        rank, world = self.fabric.global_rank, self.fabric.world_size
        batches = self.data.validation.batches(1000, rank=rank, world=world)
        right, total = measure.correct(self.model, batches, self.data.normalise)
        both = self.fabric.all_reduce(
            torch.tensor([right, total], device=self.fabric.device), reduce_op="sum"
        )
        assert isinstance(both, Tensor)
        return int(both[0]) / int(both[1])

    def finished_model(self) -> nn.Module:
        """The trained model (its best weights, if so asked), without what training hung on it."""
        if self._best:
            self.model.load_state_dict(self._best[1])
        self._freezing.release(self.model)
        if hasattr(self.objective, "close"):
            self.objective.close()
        for part in (self.objective, self._augment):
            for beside in (getattr(part, name, None) for name in ("teacher", "reference")):
                if isinstance(beside, nn.Module):
                    beside.to(memory_format=torch.contiguous_format)
        # One layout between stages, whatever the training used: a resumed run loads it in this one too.
        return self.model.to(memory_format=torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on needs: plain numbers, text and tensors, so that no pickle is read back."""
        parts: tuple[Any, ...] = (self.objective, self._augment)
        objective, augment = (part.state_dict() if hasattr(part, "state_dict") else {} for part in parts)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": objective,
            "augment": augment,
            "history": self.history,
            "step": self._step,
            "tally": self._tally.state(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state() if self.fabric.device.type == "cuda" else None,
            "best": list(self._best) if self._best else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        _copy_into(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(state["objective"])
        if hasattr(self._augment, "load_state_dict"):
            self._augment.load_state_dict(state["augment"])
        self.history = list(state["history"])
        self._step = state["step"]
        self._tally = _Tally(**state["tally"])
        self._best = (state["best"][0], state["best"][1]) if state["best"] else None
        torch.set_rng_state(state["rng"].cpu())
        if state["device_rng"] is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"].cpu())


@torch.no_grad()
def _copy_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite the model's tensors. Raises KeyError, RuntimeError if they are not those of this model."""
    # load_state_dict would not do: some quantizers of Brevitas make new parameters there, and the optimizer, which
    # holds the old ones, would train those from then on.
    own = model.state_dict(keep_vars=True)
    if own.keys() != state.keys():
        raise KeyError(*sorted(own.keys() ^ state.keys())[:1])
    for name, value in own.items():
        value.copy_(state[name])


@dataclass
class _Tally:
    """Sums over the steps of one epoch, kept as tensors so that a GPU need not wait in each step."""

    loss: Tensor | float = 0.0
    parts: dict[str, Any] = field(default_factory=dict)
    right: Tensor | int = 0
    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    first: int | None = None
    last: int | None = None
    lr: float = 0.0

    def add(
        self, losses: dict[str, Tensor], logits: Tensor, targets: Tensor, magnitude: int | None, lr: float
    ) -> None:
        total: Any = sum(losses.values())
        self.loss = self.loss + total.detach().double()
        for name, part in losses.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach().double()
        self.right = self.right + (logits.detach().argmax(1) == targets).sum()
        self.images += len(targets)
        if self.steps == 0:
            self.first = magnitude
        self.last, self.lr = magnitude, lr
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def over_all(self, fabric: Fabric) -> "_Tally":
        """The sums over all processes."""
        sums = torch.tensor(
            [
                float(self.loss),
                float(self.right),
                float(self.images),
                float(self.steps),
                *map(float, self.parts.values()),
            ],
            dtype=torch.float64,
            device=fabric.device,
        )
        total = fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        loss, right, images, steps, *values = total.tolist()
        parts = dict(zip(self.parts, values, strict=True))
        return replace(self, loss=loss, parts=parts, right=int(right), images=int(images), steps=int(steps))

    def row(self) -> dict[str, Any]:
        """What one epoch is reported with."""
        drawn = None if self.first is None and self.last is None else [self.first, self.last]
        steps = max(self.steps, 1)
        parts = {name: float(part) / steps for name, part in self.parts.items()}
        return {
            "loss": float(self.loss) / steps,
            **({"losses": parts} if len(parts) > 1 else {}),
            "train_accuracy": float(self.right) / max(self.images, 1),
            "magnitude": drawn,
            "lr": self.lr,
            "images_per_second": self.images / max(self.seconds, 1e-9),
            "seconds": self.seconds,
        }
