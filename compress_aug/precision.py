"""Which number format and memory layout training uses, chosen from the processor, with the reason."""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """autocast: the type of an autocast region, None for float32 throughout; reason: one line for the user."""

    autocast: torch.dtype | None
    channels_last: bool
    reason: str


def choose_precision(
    device: torch.device,
    wanted: str = "auto",
    *,
    quantized: bool = False,
    sample: tuple[int, int, int] = (3, 32, 32),
) -> Precision:
    """bf16 where the processor multiplies it natively, float32 elsewhere; channels_last for colour images.

    wanted:    "auto", "float32" or "bf16"
    quantized: a fake-quantized model; it is trained in float32, because bf16 keeps 8 significant bits and would
               add a rounding error as large as the steps of an 8-bit quantizer
    sample:    (C, H, W) of the images

    >>> choose_precision(torch.device("cpu"), "float32").autocast is None
    True
    """
    layout = sample[0] > 1
    end = ", channels_last" if layout else ""
    if wanted == "float32":
        return Precision(None, layout, f"float32{end}: the recipe asks for it")
    if wanted == "bf16":
        return Precision(torch.bfloat16, layout, f"bf16{end}: the recipe asks for it")
    if quantized:
        return Precision(None, layout, f"float32{end}: bf16 is too coarse for fake quantization")
    able, why = _native_bf16(device)
    return Precision(torch.bfloat16 if able else None, layout, f"{'bf16' if able else 'float32'}{end}: {why}")


@functools.cache
def _native_bf16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return able, f"{name} {'multiplies' if able else 'does not multiply'} bf16"
    if device.type == "cpu":
        for flag, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-bf16")):
            if getattr(torch.cpu, flag, lambda: False)():
                return True, f"this processor has {name}"
        return False, "this processor has neither AMX nor AVX512-bf16"
    return False, f"bf16 was never tried on {device.type}"
