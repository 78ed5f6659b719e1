"""Choose where each quantizer's grid ends, from what flows through the float model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.errors import QuantizeError
from compress_aug.quantization.checks import form
from compress_aug.surgery import device_of

_BINS = 2048


class Magnitudes:
    """A histogram of absolute values whose range grows with what it is given."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.top = 0.0
        self.largest = 0.0

    def add(self, values: Tensor) -> None:
        """Count the values that are not zero; zero is on every grid."""
        magnitudes = values.detach().abs()
        largest = float(magnitudes.max())
        if largest == 0.0:
            return
        self.largest = max(self.largest, largest)
        if self.top == 0.0:
            self.top = largest
        while largest > self.top:
            self.counts = torch.cat(
                [self.counts.view(-1, 2).sum(1), torch.zeros(_BINS // 2, dtype=torch.float64)]
            )
            self.top *= 2
        # bincount and not histc: the latter has no deterministic form on a GPU.
        bins = (magnitudes[magnitudes > 0] * (_BINS / self.top)).long().clamp_max(_BINS - 1)
        self.counts += torch.bincount(bins, minlength=_BINS).cpu()

    def end(self, how: str, bits: int, is_unsigned: bool, percentile: float = 100.0) -> float:
        """Where a grid should end: at the "max", at a "percentile" or for the least "mse"; 1 if nothing was seen.

        percentile: of the values that are not zero, in (0, 100]
        """
        if how == "mse" or self.top == 0.0:
            return self.best_end(bits, is_unsigned)
        if how == "max" or percentile == 100.0:
            return self.largest
        below = self.counts.cumsum(0)
        wanted = percentile / 100 * float(below[-1])
        index = int((below >= wanted).nonzero()[0])
        # Within its bin, as if its values were spread evenly.
        share = 1 - float(below[index] - wanted) / float(self.counts[index])
        return min((index + share) * self.top / _BINS, self.largest)

    def best_end(self, bits: int, is_unsigned: bool) -> float:
        """Where a grid of so many bits should end for the least squared error; 1 if nothing was seen.

        Tries 128 ends up to the largest value seen [our decision: at 8 bits this comes close to the
        largest value, at 4 bits it cuts off what is rare].
        """
        if self.top == 0.0:
            return 1.0
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (self.top / _BINS)
        highest = 2**bits - 1 if is_unsigned else 2 ** (bits - 1) - 1
        steps = 2**bits - 1 if is_unsigned else 2 ** (bits - 1)
        ends = torch.linspace(1 / 128, 1, 128, dtype=torch.float64) * self.top
        sizes = (ends / steps)[:, None]
        rounded = (centres / sizes).round().clamp_max(highest) * sizes
        errors = ((rounded - centres).square() * self.counts).sum(1)
        return float(ends[int(errors.argmin())])


@torch.no_grad()
def weight_ends(rows: Tensor, bits: int, how: str, percentile: float = 100.0) -> Tensor:
    """Where the signed grid of each row (channels, weights) should end, (channels,); 1 for a row of zeros.

    how:        "percentile" or "mse"
    percentile: of the magnitudes that are not zero, in (0, 100], interpolated linearly

    "mse" tries 128 ends up to the row's largest magnitude, as for what flows between the layers.
    """
    magnitudes = rows.abs().double()
    largest = magnitudes.amax(1)
    ends = largest.clone()
    if how == "percentile":
        for row, weights in enumerate(magnitudes):
            found = weights[weights > 0].sort().values
            if len(found):
                place = percentile / 100 * (len(found) - 1)
                low, high = found[int(place)], found[min(int(place) + 1, len(found) - 1)]
                ends[row] = torch.lerp(low, high, place - int(place))
    else:
        steps = 2 ** (bits - 1) - 1
        least = torch.full_like(largest, torch.inf)
        for share in range(1, 129):
            sizes = (largest * share / 128 / steps).clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            errors = ((magnitudes / sizes).round().clamp_max(steps) * sizes - magnitudes).square().sum(1)
            ends = torch.where(errors < least, largest * share / 128, ends)
            least = torch.minimum(errors, least)
    return torch.where(largest > 0, ends, torch.ones_like(ends)).to(rows.dtype)


@torch.no_grad()
def observe(
    model: nn.Module, names: list[str], batches: Iterable[Tensor], channels: int
) -> dict[str, Magnitudes]:
    """Run float input batches (N, C, H, W) through the model and count what the named modules put out.

    Raises QuantizeError if there is no batch, if one has another form than the example, or if a value
    is not finite.
    """
    seen = {name: Magnitudes() for name in names}
    handles = [model.get_submodule(name).register_forward_hook(_counting(name, seen[name])) for name in names]
    number = 0
    try:
        for number, batch in enumerate(batches, start=1):
            check_batch(batch, channels, number)
            model(batch.to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    if number == 0:
        raise QuantizeError(
            "calibration holds no batch: give float input batches (N, C, H, W), normalised as in training."
        )
    return seen


def _counting(name: str, magnitudes: Magnitudes) -> Any:
    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not bool(torch.isfinite(output).all()):
            raise QuantizeError(f'The values at "{name}" are not finite for a calibration batch.')
        magnitudes.add(output)

    return count


def check_batch(batch: object, channels: int, number: int) -> None:
    """Raises QuantizeError unless a batch is float (N, channels, H, W) with N > 0."""
    is_batch = isinstance(batch, Tensor) and batch.is_floating_point() and batch.ndim == 4 and len(batch) > 0
    if not is_batch or batch.shape[1] != channels:  # type: ignore[attr-defined]
        raise QuantizeError(
            f"Calibration batch {number} must be float (N, {channels}, H, W), found {form(batch)}."
        )
