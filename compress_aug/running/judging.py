"""How right a model is in the form that will run, and whether training won anything over plain calibration."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from compress_aug import measure
from compress_aug.data import Data
from compress_aug.errors import QuantizeError
from compress_aug.quantization import finalize, is_quantized
from compress_aug.surgery import copy_model


def as_it_will_run(model: nn.Module) -> tuple[nn.Module, str]:
    """What a file of it would compute: a finalized copy, and "". A model that cannot be finalized itself, and why."""
    if not is_quantized(model):
        return model, ""
    try:
        return finalize(copy_model(model)), ""
    except QuantizeError as error:
        return model, str(error)


def accuracies(
    model: nn.Module, data: Data, note: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """What is known of a row's "accuracy" (on the test split) and "validation_accuracy", in [0, 1].

    A quantized model is judged in the form that will run; without a test split on the validation split, so that
    its training can be compared with plain calibration.
    """
    judged, reason = as_it_will_run(model)
    if reason:
        note(f"the accuracy is that of the model as trained, because it cannot be finalized: {reason}")
    if len(data.test):
        return {"accuracy": measure.accuracy(judged, data.test.batches(1000), data.normalise)}
    if is_quantized(model) and len(data.validation):
        batches = data.validation.batches(1000)
        return {"validation_accuracy": measure.accuracy(judged, batches, data.normalise)}
    return {}


def worse_than_calibrated(
    row: Mapping[str, Any], before: Sequence[Mapping[str, Any]], data: Data
) -> str | None:
    """What to say of the row of a `train`, if it ends below the `quantize` before it; None if all is well.

    before: the rows of all earlier stages

    Only the same model is compared: one that lost weights since may well have lost accuracy. It is a warning where
    the accuracy is lower by more than two standard errors of an accuracy on so many images [ours].
    """
    calibrated = next((earlier for earlier in reversed(before) if earlier["word"] == "quantize"), None)
    if calibrated is None or row["sparsity"] > calibrated["sparsity"] + 1e-3:
        return None
    splits = (("test", "accuracy", data.test), ("validation", "validation_accuracy", data.validation))
    for name, key, split in splits:
        after, plain = row.get(key), calibrated.get(key)
        if after is None or plain is None:
            continue
        if after >= plain:
            return None
        lower = round((plain - after) * len(split))
        figures = (
            f"{name} accuracy {100 * after:.2f} % after this training is below the {100 * plain:.2f} % of plain "
            f"calibration (stage {calibrated['index']}), by {lower} of {len(split):,} images"
        )
        if (noise := _two_errors(plain, len(split))) >= lower:
            return f"{figures}, which may be chance: up to {noise} say nothing (two standard errors)"
        return (
            f"WARNING: {figures}. Try a smaller lr that falls, more epochs or more bits; without this stage the model "
            "is better"
        )
    return "whether training won anything over plain calibration is unknown: there are no test or validation images"


def _two_errors(accuracy: float, images: int) -> int:
    """How many images two standard errors of an accuracy in [0, 1] are, by the binomial distribution."""
    # One more of each kind, so that what is always right is not taken to be so for certain.
    share = (accuracy * images + 1) / (images + 2)
    return int(2 * math.sqrt(images * share * (1 - share)))
