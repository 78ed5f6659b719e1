"""Fake quantization as one function with its own gradient: by the compiled kernel on a CPU, or by torch operations.

Brevitas' chain of some seven torch operations forward and eight backward passes over memory as often; here it is once
each, or in pieces that stay in the cache. On a GPU the torch executor works on whole tensors (there is no fused kernel
of our own for one yet).
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import inf
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress_aug.errors import MissingPart, QuantizeError
from compress_aug.native import Kernels, kernels

Executor = Literal["auto", "stock", "torch", "compiled"]
DTYPES = (torch.float32, torch.bfloat16)

# How many values the torch executor works on at a time on a CPU: what a step reads and writes stays in the cache.
_PIECE = 1 << 17
# The values of a block, whose part of a scale's gradient the kernel sums on its own; BLOCK in fake_quant.c.
_BLOCK = 2048
# Handing a share to a thread of torch takes about 1 us, and a piece to one of our own some 20 us: as long as the kernel
# takes for this many values.
_LEAST_SHARE = 1 << 13
_LEAST_PIECE = 1 << 15

_executor: Executor = "auto"


@dataclass(frozen=True)
class Grid:
    """Where values go, in steps of the scale, and what happens to them before.

    smallest, largest: where the grid ends, whole numbers
    low, high:         where values are cut off before they are quantized, as ReLU (0, inf) and ReLU6 (0, 6) do
    passes:            whether the gradient passes where the grid ends: so it does for weights of Brevitas
    """

    smallest: float
    largest: float
    low: float = -inf
    high: float = inf
    passes: bool = False

    @property
    def cuts(self) -> bool:
        """Whether values are cut off before they are quantized."""
        return self.low > -inf or self.high < inf


@contextmanager
def quantization_executor(name: Executor) -> Iterator[None]:
    """What carries out fake quantization within: for comparing and measuring, all give the same numbers.

    name: "stock" for Brevitas' own operations, "torch", "compiled", or "auto" (the default without it), which is
          compiled where there are kernels and the tensors are on the CPU, and torch elsewhere

    Holds for all threads. Raises QuantizeError for another name, MissingPart for "compiled" without kernels.

    >>> with quantization_executor("torch"):
    ...     fake_quantize(torch.tensor([-1.0, 0.26, 9.0]), torch.tensor(0.5), Grid(0, 15))
    tensor([0.0000, 0.5000, 7.5000])
    """
    global _executor
    if name not in get_args(Executor):
        raise QuantizeError(f"executor must be one of {', '.join(get_args(Executor))}, found {name!r}.")
    if name == "compiled" and kernels() is None:
        raise MissingPart(
            "the compiled executor is not there: install compress_aug again with a C compiler (gcc or clang) at "
            "hand, or use the executor torch, which gives the same numbers."
        )
    before, _executor = _executor, name
    try:
        yield
    finally:
        _executor = before


def takes(values: Tensor) -> bool:
    """Whether `fake_quantize` works on these values here, and has not been switched to "stock"."""
    return _executor != "stock" and values.dtype in DTYPES and values.numel() > 0


def fake_quantize(values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The nearest values on the grid, with straight-through gradients for the values and the scale.

    values: float32 or bfloat16, any shape, at least one value; what is no number stays none
    scale:  float32, the size of a step: one number, or one for each values[i], (N, 1, ..., 1). For one of another type,
            as whole models of bfloat16 have them, torch's operations are taken

    Returns the same numbers as Brevitas' IntQuant without zero point, in the memory format of `values`. The gradient
    of the values is also the same; that of the scale is summed in another order, and in bfloat16 not rounded to
    bfloat16 in between. Cannot be differentiated twice.

    Raises QuantizeError for values on a GPU when the executor is "compiled".

    >>> fake_quantize(torch.tensor([-1.0, 0.26, 9.0]), torch.tensor(0.5), Grid(0, 15, low=0.0, high=6.0))
    tensor([0.0000, 0.5000, 6.0000])

    Source: straight-through gradients and the gradient of a learned scale as in arXiv 1902.08153, without its factor.
    """
    quantized: Tensor = _FakeQuantize.apply(values, scale, grid, _kernels_for(values, scale, grid))
    return quantized


def _kernels_for(values: Tensor, scale: Tensor, grid: Grid) -> Kernels | None:
    """The kernels if the values are to go through them, None for torch's operations."""
    # Nothing about the pointers is checked further in.
    has_form = scale.dtype == torch.float32 and not (grid.passes and values.dtype != torch.float32)
    if _executor == "torch" or (values.is_cpu and not has_form):
        return None
    if values.is_cpu:
        return kernels()
    if _executor == "compiled":
        raise QuantizeError(
            f"the compiled executor takes values on the CPU, but these are on {values.device}: use executor auto or "
            "torch, which give the same numbers."
        )
    return None


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, grid: Grid, found: Kernels | None) -> Tensor:
        given, values = values, _dense(values, leads=scale.numel() > 1)
        ctx.save_for_backward(values, scale)
        ctx.grid, ctx.kernels = grid, found
        result = _by_torch(values, scale, grid) if found is None else _by_kernel(values, scale, grid, found)
        return result if values is given else _laid_out_as(result, torch.empty_like(given))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, scale = ctx.saved_tensors
        gradient = _laid_out_as(gradient, values)
        if ctx.kernels is None:
            back, of_scale = _gradient_by_torch(values, gradient, scale, ctx.grid)
        else:
            back, of_scale = _gradient_by_kernel(values, gradient, scale, ctx.grid, ctx.kernels)
        return back, of_scale, None, None


def _dense(values: Tensor, leads: bool) -> Tensor:
    """The values without gaps in memory, in any order of the axes, unless the first axis must lead."""
    made = torch.empty_like(values)
    if leads and made.stride(0) * len(made) != made.numel():
        return values.contiguous()
    return values if made.stride() == values.stride() else made.copy_(values)


def _laid_out_as(other: Tensor, values: Tensor) -> Tensor:
    same = other.stride() == values.stride() and other.dtype == values.dtype
    return other if same else torch.empty_like(values).copy_(other)


def _flat(values: Tensor) -> Tensor:
    """The values of a tensor without gaps, in the order they have in memory."""
    return values.as_strided((values.numel(),), (1,), values.storage_offset())


# ---------------------------------------------------------------- plain torch


def _by_torch(values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    result = torch.empty_like(values)
    for part, made in zip(_pieces(values, scale), _pieces(result, scale), strict=True):
        source = torch.clamp(part, grid.low, grid.high, out=made) if grid.cuts else part
        torch.div(source, scale, out=made).round_().clamp_(grid.smallest, grid.largest).mul_(scale)
    return result


def _gradient_by_torch(values: Tensor, gradient: Tensor, scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    result = torch.empty_like(values)
    parts = zip(*(_pieces(tensor, scale) for tensor in (values, gradient, result)), strict=True)
    sums = [_piece_gradient(part, above, below, scale, grid) for part, above, below in parts]
    of_scale = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return result, of_scale.reshape(scale.shape)


def _piece_gradient(values: Tensor, gradient: Tensor, result: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Write the gradient of a piece into `result`, and return what it adds to that of the scale."""
    cut = values.clamp(grid.low, grid.high) if grid.cuts else values
    exact = cut / scale
    steps = exact.round()
    torch.mul(gradient, scale, out=result)
    if not grid.passes:
        # `hardtanh_backward` keeps what lies strictly between two numbers, and puts zero for the rest. Whole numbers
        # do so in bfloat16 as well.
        exact = _between(exact, steps, grid.smallest - 1, grid.largest + 1)
        result.copy_(_between(result, steps, grid.smallest - 1, grid.largest + 1))
    result.div_(scale)
    if grid.cuts:
        result.copy_(_between(result, values, grid.low, grid.high))
    steps.clamp_(grid.smallest, grid.largest).sub_(exact)
    if scale.numel() == 1:
        return torch.dot(gradient.reshape(-1).float(), steps.reshape(-1).float())
    return (gradient * steps).float().flatten(1).sum(1)


def _between(chosen: Tensor, values: Tensor, low: float, high: float) -> Tensor:
    kept: Tensor = torch.ops.aten.hardtanh_backward(chosen, values, low, high)
    return kept


def _pieces(values: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Parts of a tensor that fit the cache, or the whole where that is of no use."""
    if scale.numel() > 1 or not values.is_cpu:
        return (values,)
    return torch.split(_flat(values), _PIECE * torch.get_num_threads())


# ---------------------------------------------------------------- the compiled kernel


def _by_kernel(values: Tensor, scale: Tensor, grid: Grid, found: Kernels) -> Tensor:
    result = torch.empty_like(values)
    work = _Work(values, scale, grid)

    def do(start: int, stop: int, threads: int) -> int:
        return found.fake_quant(
            *(work.address(values, start), work.address(result, start)),
            *(*work.extent(start, stop), *work.ends, values.dtype is torch.bfloat16, threads),
        )

    work.share(do, found.has_team)
    return result


def _gradient_by_kernel(
    values: Tensor, gradient: Tensor, scale: Tensor, grid: Grid, found: Kernels
) -> tuple[Tensor, Tensor]:
    result = torch.empty_like(values)
    work = _Work(values, scale, grid)
    sums = torch.empty((work.rows, -(-work.columns // _BLOCK)), dtype=torch.float64)

    def do(start: int, stop: int, threads: int) -> int:
        return found.fake_quant_gradient(
            *(work.address(values, start), work.address(gradient, start), work.address(result, start)),
            *(sums.data_ptr() + start * 8, *work.extent(start, stop), *work.ends),
            *(grid.passes, values.dtype is torch.bfloat16, threads),
        )

    work.share(do, found.has_team)
    return result, sums.sum(1).float().reshape(scale.shape)


class _Work:
    """A tensor as rows of one scale each, cut into blocks; several threads take a share of the blocks each."""

    def __init__(self, values: Tensor, scale: Tensor, grid: Grid) -> None:
        self.rows = scale.numel()
        self.columns = values.numel() // self.rows
        self.size = values.element_size()
        self.scale = scale.detach().contiguous()
        self.ends = (grid.smallest, grid.largest, grid.low, grid.high, grid.cuts)

    def address(self, tensor: Tensor, block: int) -> int:
        """Where a block of the only row starts, or the whole tensor if there are several rows."""
        return tensor.data_ptr() + block * _BLOCK * self.size

    def extent(self, start: int, stop: int) -> tuple[int, int, int]:
        """Rows, columns and the address of the scales, for blocks `start` up to `stop`."""
        columns = min(stop * _BLOCK, self.columns) - start * _BLOCK
        return self.rows, columns, self.scale.data_ptr()

    def share(self, do: Any, has_team: bool) -> None:
        """Call `do(start, stop, threads)` for all blocks, on as many threads as torch has, this one among them."""
        blocks, values = -(-self.columns // _BLOCK), self.rows * self.columns
        threads = torch.get_num_threads()
        if has_team:
            do(0, blocks, max(1, min(threads, values // _LEAST_SHARE)))
            return
        pieces = min(threads, values // _LEAST_PIECE) if self.rows == 1 else 1
        if pieces < 2:
            do(0, blocks, 1)
            return
        bounds = [blocks * piece // pieces for piece in range(pieces + 1)]
        others = [_pool(pieces - 1).submit(do, start, stop, 1) for start, stop in pairwise(bounds[1:])]
        do(0, bounds[1], 1)
        for other in others:
            other.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fake-quant")


# A forked process (a worker of a data loader) has the pool's queue but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
