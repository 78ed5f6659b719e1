"""Pruning while a model trains: a little more every so often, along a curve."""

from collections.abc import Callable
from typing import get_args

from torch import nn

from compress_aug.errors import PruneError, nearest
from compress_aug.pruning.choice import Patterns
from compress_aug.pruning.masks import magnitudes
from compress_aug.pruning.ranked import Scope, check_sparsity, checked_layers, mask_share
from compress_aug.schedule import Ramp, value
from compress_aug.surgery import layer_shapes, record, surgery_log

_SHAPES = get_args(Ramp.model_fields["shape"].annotation)


def gradual(
    start: float,
    end: float,
    shape: str = "cubic",
    *,
    every: float = 0.01,
    until: float = 0.75,
    steps: int = 4,
    scope: Scope = "global",
    layers: Patterns = None,
    exclude: Patterns = None,
) -> Callable[[nn.Module, float], None]:
    """A function (model, progress) that prunes while the model trains: `on_step` of a `Training`, or in your own loop.

    start, end: sparsity at the beginning and from `until` on, each the total, exact to one weight, in [0, 1)
    shape:      "cubic" (falls fast first), "linear", "cosine" or "step" (a stair of `steps` levels)
    every:      share of the training after which the masks grow again, in (0, 1]
    until:      share of the training after which `end` is reached, in (0, 1]; the rest is there to recover
    scope, layers, exclude: as for `mask_smallest`

    What it does depends on progress and on the weights alone, so a training that is stopped goes on exactly.
    For that, and so that nothing is missing when a state is loaded, call it once before the `Training` is built:
    it puts the first masks on. A last call with progress 1.0 makes sure of `end` in a training of very few steps.
    The momentum of an optimizer cannot bring back what is masked; see `mask_smallest`.

    Raises PruneError for values out of range and an `end` below `start`; when called, as `mask_smallest` does.

    >>> from compress_aug import Settings, Training, fit, measure
    >>> prune = gradual(0.0, 0.5, every=0.1)
    >>> prune(model, 0.0)
    >>> training = Training(model, data, settings=Settings(epochs=2, batch_size=16), on_step=prune)
    >>> history = fit(training)
    >>> round(measure.sparsity(training.finished_model()), 3)
    0.5

    Source: automated gradual pruning, arXiv 1710.01878: s(t) = end + (start - end) * (1 - t/T)^3, pruned every
    so many steps. Ours: shares of the training in place of steps, and layers ranked together by default.
    """
    for sparsity in (start, end):
        check_sparsity(sparsity)
    _check(start, end, shape, every, until)
    ramp = Ramp(start=start, end=end, shape=shape, steps=steps)
    what = {"start": start, "end": end, "shape": shape, "every": every, "until": until, "scope": scope}
    last: tuple[nn.Module, float] | None = None

    def prune(model: nn.Module, progress: float) -> None:
        nonlocal last
        # The small number keeps 0.1 * 3 = 0.3000...04 on the right side of the step.
        share = 1.0 if progress >= until - 1e-9 else int(progress / every + 1e-9) * every / until
        if last is not None and last[0] is model and last[1] == share:
            return
        chosen = checked_layers(model, end, scope, layers, exclude)
        sparsity = value(ramp, min(share, 1.0))
        if not _is_masked(chosen, sparsity, scope):
            mask_share(model, chosen, sparsity, scope, magnitudes, whose="What is pruned gradually")
        _log_once(model, {**what, "layers": layer_shapes(model, list(chosen))})
        last = (model, share)

    return prune


def _check(start: float, end: float, shape: str, every: float, until: float) -> None:
    if end < start:
        raise PruneError(f"sparsity can only grow: the end, {end:g}, is lower than the start, {start:g}.")
    if shape not in _SHAPES:
        raise PruneError(f'No shape of a curve is called "{shape}": {nearest(shape, _SHAPES)}')
    for name, share in (("every", every), ("until", until)):
        if not 0 < share <= 1:
            raise PruneError(f"{name} is a share of the training, above 0 and at most 1; found {share!r}.")


def _is_masked(layers: dict[str, nn.Module], sparsity: float, scope: str) -> bool:
    """Whether the masks are there already, as after an interruption. Not to be made again: that would also
    clear what momentum has moved behind them, and a resumed training would differ in bits that nobody sees."""
    masks = [getattr(layer, "weight_mask", None) for layer in layers.values()]
    if any(mask is None for mask in masks):
        return False
    counts = [(int((mask == 0).sum()), mask.numel()) for mask in masks if mask is not None]
    if scope == "global":
        counts = [(sum(masked for masked, _ in counts), sum(size for _, size in counts))]
    return all(masked == round(sparsity * size) for masked, size in counts)


def _log_once(model: nn.Module, arguments: dict[str, object]) -> None:
    """One entry for the whole curve: an entry for each of its steps would say no more."""
    entry = {"verb": "mask", "method": "gradual", **arguments}
    log = surgery_log(model)
    if not log or log[-1] != entry:
        record(model, "mask", method="gradual", **arguments)
