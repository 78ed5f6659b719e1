"""How to optimise: the settings of a training, its optimizer, learning rate and seeds, and the facts of a model."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from compress_aug import measure
from compress_aug.errors import ModelError
from compress_aug.quantization import mean_weight_bits


@dataclass(frozen=True)
class Settings:
    """How to optimise; the keys of the `train` stage by the same names, with the same defaults.

    batch_size: images per step over all devices;  warmup: share of the stage in which lr rises
    freeze_scales, freeze_batch_norm: share of the stage, in [0, 1], from which on learned scales get no more
                updates and batch norms use their running statistics without moving them; 1 for never. None is
                0.9 and 0.8 for a quantized model whose lr falls, and else never
    """

    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    lr_schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    weights: Literal["last", "best"] = "last"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    freeze_scales: float | None = None
    freeze_batch_norm: float | None = None


def mixed_seed(*parts: object) -> int:
    """One seed from several numbers or words; the same on every machine and in every process.

    >>> mixed_seed(0, "train", 1) == mixed_seed(0, "train", 1) != mixed_seed(0, "train", 2)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def lr_factor(lr_schedule: str, progress: float, warmup: float = 0.0) -> float:
    """What the learning rate is multiplied with at `progress` in [0, 1].

    >>> round(lr_factor("cosine", 0.5), 6), round(lr_factor("step", 0.65), 6)
    (0.5, 0.01)
    """
    if progress < warmup:
        return progress / warmup
    if lr_schedule == "cosine":
        return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    if lr_schedule == "step":
        return float(0.1 ** min(3, math.floor(progress / 0.3 + 1e-9)))
    return 1.0


def facts_of(model: nn.Module, original: Mapping[str, float] | None = None) -> Callable[[str], float]:
    """What `by:` schedules read: sparsity, parameters (share of `original["parameters"]`), bits. Read once."""
    readings: dict[str, Callable[[], float]] = {
        "sparsity": lambda: measure.sparsity(model),
        "parameters": lambda: measure.parameters(model) / (original or {}).get("parameters", math.nan),
        "bits": lambda: mean_weight_bits(model),
    }

    @cache
    def fact(name: str) -> float:
        return readings[name]()

    return fact


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Settings, scales: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW. Weights decay; biases, norms (fewer than two axes) and learned `scales` do not."""
    # By identity, because a scale per channel has as many axes as a weight.
    undecayed = {id(scale) for scale in scales}
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ModelError("The model has no parameters that want a gradient: there is nothing to train.")

    def decays(parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2 and id(parameter) not in undecayed

    groups = [
        {"params": [p for p in trained if decays(p)], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if not decays(p)], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr)
