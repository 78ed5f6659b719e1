"""Batch norms that do more than normalise, in parts: the norm, and what their class adds to it."""

import torch
from torch import Tensor, nn

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SplitNorm(nn.Module):
    """A batch norm and the parts that a subclass runs after it (dropout, activation), one after another."""

    def __init__(self, whole: nn.Module, kind: type[nn.Module]) -> None:
        super().__init__()
        norm = kind(whole.num_features, whole.eps, whole.momentum, device="meta")
        norm._parameters, norm._buffers = whole._parameters, whole._buffers
        norm.affine, norm.track_running_stats = whole.affine, whole.track_running_stats
        self.norm = norm.train(whole.training)
        self.behind = nn.ModuleDict(dict(whole.named_children()))

    def forward(self, values: Tensor) -> Tensor:
        values = self.norm(values)
        for part in self.behind.values():
            values = part(values)
        return values


def is_plain(norm: nn.Module) -> bool:
    """Whether a batch norm (or a subclass) computes what torch.nn's own does."""
    return any(isinstance(norm, kind) and type(norm).forward is kind.forward for kind in _PLAIN)


def split_norms(model: nn.Module) -> list[str]:
    """Replace each batch norm with a forward of its own by its parts; says where that is not what it computes.

    Layers that join a batch norm with an activation are subclasses of the batch norm: folded like one, they
    would lose the activation. Whether the parts in the order of their names compute what the class does is
    tried, in evaluation mode, on random values.
    """
    notes = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, _PLAIN) or is_plain(module):
            continue
        base = next(kind for kind in _PLAIN if isinstance(module, kind))
        parts = SplitNorm(module, base)
        if _computes_the_same(module, parts, base):
            model.set_submodule(name, parts)
        else:
            notes.append(f'batch norm "{name}" stays float: {type(module).__name__} has a forward of its own')
    return notes


@torch.no_grad()
def _computes_the_same(module: nn.Module, parts: nn.Module, base: type[nn.Module]) -> bool:
    if module.running_mean is None:
        return False
    modes = {part: part.training for part in (*module.modules(), *parts.modules())}
    module.eval()
    parts.eval()
    axes = 1 if base is nn.BatchNorm1d else 3 if base is nn.BatchNorm3d else 2
    assert isinstance(module.running_mean, Tensor) and isinstance(module.num_features, int)
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(4, module.num_features, *[3] * axes, generator=generator)
    values = values.to(module.running_mean)
    try:
        # Copies, because an activation may write into what it is given.
        return torch.allclose(module(values.clone()), parts(values.clone()), rtol=1e-4, atol=1e-5)
    except Exception:  # the parts may be anything, and raise anything
        return False
    finally:
        for part, training in modes.items():
            part.training = training
