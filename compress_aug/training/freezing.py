"""What stops moving late in a training: learned scales, and the statistics of batch norms."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_aug.errors import RecipeError
from compress_aug.quantization import is_quantized, learned_scales
from compress_aug.training.settings import Settings

# What each key freezes, and from when on in a quantized model, unasked. Norms first: the scales can still follow.
_KEYS = {"freeze_batch_norm": ("batch-norm statistics", 0.8), "freeze_scales": ("learned scales", 0.9)}

Note = Callable[[str], None]


class Freezing:
    """Keeps learned scales and batch-norm statistics as they are from a share of the stage on.

    It is told the progress at every step and remembers nothing, so that an interrupted training goes on as it
    would have without.

    note: is told what is frozen unasked, and what was asked for but is not there

    Raises RecipeError for a share that is not in [0, 1].
    """

    def __init__(self, model: nn.Module, settings: Settings, note: Note) -> None:
        # Not at a constant lr: without the statistics of its batch, a 2-bit net falls to chance at a rate that it bore
        # with them (measured). Where lr has fallen, this is harmless.
        usual = is_quantized(model) and settings.lr_schedule != "constant"
        self._norms = [module for module in model.modules() if _keeps_statistics(module)]
        self._scales = learned_scales(model)
        self._norms_at, self._scales_at = (
            _share(key, getattr(settings, key), usual, bool(found), note)
            for key, found in (("freeze_batch_norm", self._norms), ("freeze_scales", self._scales))
        )

    def hold_statistics(self, progress: float) -> None:
        """Right before a forward pass: whatever ran since the last one may have set the mode."""
        if progress >= self._norms_at:
            for norm in self._norms:
                norm.eval()

    def hold_scales(self, progress: float) -> None:
        """After a backward pass: an optimizer passes over what has no gradient, momentum and all."""
        # Not by requires_grad: of several processes, all wait for the gradients that were there at the start.
        if progress >= self._scales_at:
            for scale in self._scales:
                scale.grad = None

    def release(self, model: nn.Module) -> None:
        """Put the batch norms back into the mode of their model."""
        for norm in self._norms:
            norm.train(model.training)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _share(key: str, asked: float | None, usual: bool, there: bool, note: Note) -> float:
    """The share from which on it is frozen; 1 is never reached."""
    what, late = _KEYS[key]
    if asked is None:
        if usual and there:
            note(f"{what} stay as they are from {100 * late:g} % of the training on ({key}: {late:g})")
        return late if usual else 1.0
    if not 0 <= asked <= 1:
        raise RecipeError(f"{key} must be a share of the training in [0, 1], found {asked:g}.")
    if asked < 1 and not there:
        note(f"{key}: {asked:g} changes nothing, because the model has no {what}")
    return asked
