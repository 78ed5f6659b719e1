"""The learned scales of a quantized model: which of its parameters they are."""

from torch import nn

from compress_aug.quantization.bits import is_brevitas


def learned_scales(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that quantizers learn their scales by, each once, in the order of the model.

    Scales that are computed from the weights at every pass are none, nor are fixed ones or the weights. A scale of
    ours is one logarithm, (); one of your own Brevitas layers may have a value per channel, (C, 1, 1, 1).

    >>> learned_scales(nn.Sequential(nn.Linear(2, 2)))
    []
    """
    quantizers = (inner for module in model.modules() if is_brevitas(module) for inner in module.modules())
    scalings = (getattr(quantizer, "scaling_impl", None) for quantizer in quantizers)
    found = (
        scale for scaling in scalings if isinstance(scaling, nn.Module) for scale in scaling.parameters()
    )
    return list(dict.fromkeys(scale for scale in found if scale.requires_grad))
