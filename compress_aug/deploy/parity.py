"""Proof that a file computes what its model computes, on real images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress_aug.deploy.graph import Array
from compress_aug.deploy.openvino_runtime import OpenVinoSession
from compress_aug.deploy.runtime import Session
from compress_aug.deploy.steps import MOST_IMAGES, LayerSteps, layer_steps
from compress_aug.errors import ExportError, ParityError
from compress_aug.surgery import copy_model
from compress_aug.targets import Runtime

# A fake-quantized model sums floats and its file sums integers, so a sum that lies next to the middle between
# two steps may round the other way. Our decision: one image in 200 may change its class for that.
LEAST_AGREEMENT = 0.995

# On a small split one image weighs more than that share; two may then differ.
SMALL_SPLIT = 400
MOST_DISAGREEMENTS = 2


# Of the images that differ, so many are asked again with the runtime's optimizations off.
_ASKED_AGAIN = 64


@dataclass(frozen=True)
class Parity:
    """How well a file agrees with the model that it was written from.

    max_abs_diff:   largest difference of any logit of any image; infinite if one of them is not a number
    top1_agreement: share of images that both put into the same class, in [0, 1]
    accuracy:       share of images that the file names right, in [0, 1]
    model_accuracy: the same of the model
    images:         how many were compared
    disagreements:  how many of them got another class
    due_to_runtime: share of the disagreements (of the first 64) that go away with the runtime's optimizations
                    off, in [0, 1]; None without disagreements
    layers:         how far each layer's values lie from the model's, in steps, from the model's own inputs; in
                    the order of execution. With another runtime than ONNX Runtime, which lets nobody look into its
                    layers, they are those of the file as it is written (its optimizations off)
    wrong:          the first layer that is more than 1 step off even with the runtime's optimizations off: there
                    the file itself differs. None if there is no such layer
    runtime:        what ran the file
    """

    max_abs_diff: float
    top1_agreement: float
    accuracy: float
    model_accuracy: float
    images: int
    disagreements: int
    due_to_runtime: float | None = None
    layers: tuple[LayerSteps, ...] = ()
    wrong: LayerSteps | None = None
    runtime: Runtime = "onnxruntime"

    @property
    def diverging(self) -> LayerSteps | None:
        """The first layer that is further off than rounding explains, None if all agree."""
        return next((layer for layer in self.layers if layer.diverges), None)

    @property
    def holds(self) -> bool:
        """Whether the file may stand for the model."""
        return bool(np.isfinite(self.max_abs_diff)) and self.keeps_classes and self.wrong is None

    @property
    def keeps_classes(self) -> bool:
        """Whether enough images get the class that the model gives them."""
        if self.images < SMALL_SPLIT:
            return self.disagreements <= MOST_DISAGREEMENTS
        return self.top1_agreement >= LEAST_AGREEMENT


def check_parity(
    model: nn.Module,
    path: Path,
    inputs: Iterable[tuple[Tensor, Tensor]],
    *,
    runtime: Runtime = "onnxruntime",
) -> Parity:
    """Run model and file side by side: the model in float32 on the CPU, the file as its users will run it.

    model:  as it was written, so the finalized one if `write` was given a `finalize`. It stays as it is
    inputs: batches of normalised float images (N, C, H, W) and their classes int64 (N,)
    runtime: what the file's users run it with. Layers are compared in ONNX Runtime, whatever it is

    Classes are compared for all images; the values of each layer for up to 64 images of the first batch, from
    equal inputs (see `steps.layer_steps`).

    Raises ExportError if the file cannot be run or there are no images, ParityError if the logits of the two
    have different shapes, MissingPart if the runtime is not installed.

    >>> parity = check_parity(model, Path("model.onnx"), [(torch.rand(8, 3, 8, 8), torch.zeros(8).long())])
    >>> parity.top1_agreement, parity.images
    (1.0, 8)
    """
    reference = copy_model(model).cpu().float().eval()
    is_own = runtime == "onnxruntime"
    opened = Session if is_own else OpenVinoSession
    session: Session | OpenVinoSession = opened(path, threads=torch.get_num_threads())
    tally = _Tally()
    first: Tensor | None = None
    for images, targets in inputs:
        images = images.cpu().float()
        if first is None:
            # Spread over the batch: the images of a folder come class by class.
            first = images[:: max(1, len(images) // MOST_IMAGES)].clone()
        with torch.no_grad():
            expected = reference(images).numpy()
        tally.add(images.numpy(), targets.cpu().numpy(), expected, session.run(images.numpy()))
    if first is None or not tally.images:
        raise ExportError(f"There are no images to compare {path} with its model on.")
    layers = layer_steps(reference, path, first, optimize=is_own)
    wrong = None
    if any(layer.diverges for layer in layers):
        plain = layer_steps(reference, path, first, optimize=False) if is_own else layers
        wrong = next((layer for layer in plain if layer.is_wrong), None)
    return Parity(
        max_abs_diff=tally.largest,
        top1_agreement=1 - tally.disagreements / tally.images,
        accuracy=tally.file_right / tally.images,
        model_accuracy=tally.model_right / tally.images,
        images=tally.images,
        disagreements=tally.disagreements,
        due_to_runtime=_due_to_runtime(path, tally),
        layers=layers,
        wrong=wrong,
        runtime=runtime,
    )


def require(parity: Parity) -> None:
    """Accept the file, or raise ParityError that says how far it is off and where to look.

    At least 99.5 % of the images must keep their class; of fewer than 400 images, all but two. And no layer of
    the file itself, computed from the model's own inputs as it is written, may be more than 1 step off. What the
    runtime's integer kernels add to that on this machine (see `Parity.diverging`) is judged by the classes only.
    """
    if parity.holds:
        return
    if not np.isfinite(parity.max_abs_diff):
        raise ParityError(
            "Logits of the model or of its file are not numbers: look for weights that are none, or for a "
            "quantizer whose scale is zero."
        )
    if parity.keeps_classes:
        raise ParityError(
            f"The file computes something else than the model, first in layer {parity.wrong}, from equal inputs "
            f"and with the runtime's optimizations off. {_REMEDY}"
        )
    wanted = f"at least {LEAST_AGREEMENT:.1%} must agree"
    if parity.images < SMALL_SPLIT:
        wanted = f"at most {MOST_DISAGREEMENTS} may"
    raise ParityError(
        f"The file puts {parity.disagreements} of {parity.images} images into another class than the model "
        f"({parity.top1_agreement:.2%} agree, the largest difference of a logit is "
        f"{parity.max_abs_diff:.3g}); {wanted}. {_blame(parity)}"
    )


_REMEDY = "Finalize a quantized model before it is written, and write a model again that was changed since."


def _blame(parity: Parity) -> str:
    found = (
        "From equal inputs all layers agree, so that rounding adds up on the way." if parity.layers else ""
    )
    if (first := parity.wrong or parity.diverging) is not None:
        found = f"The first layer that diverges, from equal inputs, is {first}."
    if parity.due_to_runtime is None:
        return found
    if parity.runtime != "onnxruntime":
        shown = f"{parity.due_to_runtime:.0%} of these are right in ONNX Runtime with its optimizations off"
        if parity.due_to_runtime > 0.5:
            return f"{shown}: {parity.runtime} computes something else. {found}"
        return f"{shown}: the file itself differs. {found} {_REMEDY}"
    shown = f"{parity.due_to_runtime:.0%} of these are right with the runtime's optimizations off"
    if parity.due_to_runtime > 0.5:
        return f"{shown}: its integer kernels compute something else. {found}"
    return f"{shown}: the file itself differs. {found} {_REMEDY}"


@dataclass
class _Tally:
    """Sums over the batches, and the first images that got another class."""

    images: int = 0
    disagreements: int = 0
    file_right: int = 0
    model_right: int = 0
    largest: float = 0.0
    suspects: list[Array] = field(default_factory=list)
    suspects_expected: list[Array] = field(default_factory=list)

    def add(self, images: Array, targets: Array, expected: Array, found: Array) -> None:
        if expected.shape != found.shape:
            raise ParityError(
                f"The model gives logits of shape {expected.shape}, the file of shape {found.shape}: "
                "the file is not of this model."
            )
        with np.errstate(invalid="ignore"):
            largest = float(np.abs(expected.astype(np.float64) - found).max(initial=0.0))
        self.largest = max(self.largest, largest if np.isfinite(largest) else float("inf"))
        model_says, file_says = expected.argmax(1), found.argmax(1)
        differ = model_says != file_says
        self.images += len(targets)
        self.disagreements += int(differ.sum())
        self.file_right += int((file_says == targets).sum())
        self.model_right += int((model_says == targets).sum())
        room = _ASKED_AGAIN - len(self.suspects)
        self.suspects += list(images[differ][:room])
        self.suspects_expected += list(model_says[differ][:room])


def _due_to_runtime(path: Path, tally: _Tally) -> float | None:
    if not tally.suspects:
        return None
    plain = Session(path, threads=torch.get_num_threads(), optimize=False)
    says = plain.run(np.stack(tally.suspects)).argmax(1)
    return float((says == np.array(tally.suspects_expected)).mean())
