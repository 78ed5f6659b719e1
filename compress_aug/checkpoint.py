"""Weights and the log of changes in one safetensors file: a fresh model becomes the compressed one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from compress_aug import channels, inheritance, models, pruning, quantization
from compress_aug.errors import CompressAugError, RunFolderError
from compress_aug.folders import written_whole
from compress_aug.surgery import (
    LogEntry,
    device_of,
    fold_masks,
    holder_of,
    masked_layers,
    replace_log,
    surgery_log,
)

Replay = Callable[[nn.Module, LogEntry], nn.Module]

FORMAT = "1"


def _structure_unchanged(model: nn.Module, entry: LogEntry) -> nn.Module:
    return model


REPLAY: dict[str, Replay] = {
    "model": models.replay,
    "mask": pruning.replay,
    "make_permanent": lambda model, entry: fold_masks(model),
    "cut_channels": channels.replay,
    "attach": inheritance.replay_attach,
    "drop": inheritance.replay_drop,
    "quantize": quantization.replay,
    "finalize": quantization.replay,
    "redraw": _structure_unchanged,
}
"""Which function makes the change of a log entry again on a fresh model."""


def save(model: nn.Module, path: Path, **extra: Any) -> None:
    """Write the model's log and weights to `path` (*.safetensors), whole or not at all.

    extra: plain JSON to store beside the log; `read_extra` gives it back.
    """
    tensors = {name: _own(value) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    about = {"format": FORMAT, "log": json.dumps(surgery_log(model)), "extra": json.dumps(extra)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        # As bytes, because safetensors' own writing hides a full disk in an error of its own, and gives its
        # files to their owner alone.
        temporary.write_bytes(serialize(tensors, metadata=about))


def _own(tensor: Tensor) -> Tensor:
    # safetensors refuses tensors that share memory (tied weights) or that are not laid out in order.
    return tensor.detach().cpu().contiguous().clone()


def read_extra(path: Path) -> dict[str, Any]:
    """What was stored beside the log. Raises RunFolderError if `path` is not such a file, or a damaged one."""
    extra: dict[str, Any] = _part(path, "extra", dict)
    return extra


def read_log(path: Path) -> list[LogEntry]:
    """The log of changes. Raises RunFolderError if `path` is not such a file, or a damaged one."""
    log: list[LogEntry] = _part(path, "log", list)
    if not all(isinstance(entry, dict) and isinstance(entry.get("verb"), str) for entry in log):
        raise RunFolderError(f"{path} is damaged: not every entry of its log is a change to a model.")
    return log


def _part(path: Path, name: str, kind: type[Any]) -> Any:
    """One part of what lies beside the weights."""
    about = _about(path)
    try:
        part = json.loads(about[name])
    except (KeyError, ValueError):
        part = None
    if not isinstance(part, kind):
        raise RunFolderError(f"{path} is damaged: its {name} cannot be read.")
    return part


def _about(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} is not a checkpoint: {error}.") from None
    found = about.get("format")
    if found is None or "log" not in about:
        raise RunFolderError(f"{path} is not a checkpoint of compress_aug: it holds weights, but no log.")
    if found != FORMAT:
        raise RunFolderError(
            f"{path} is a checkpoint in format {found!r}, and this version of compress_aug reads {FORMAT!r}: "
            "use the version that wrote it."
        )
    return about


def rebuild(base: nn.Module, path: Path, replay: Mapping[str, Replay] | None = None) -> nn.Module:
    """Make the logged changes again on a fresh model and load the weights; consumes `base`, returns the model.

    base:   the model as it was before any change, or with the first of the logged changes made already; its
            weights do not matter
    replay: further verbs, of stages of your own: verb -> function(model, entry) -> model

    Raises RunFolderError if the base is not the model that the checkpoint was made from, or if the file is
    damaged.

    >>> save(model, Path("model.safetensors"))
    >>> model = rebuild(model, Path("model.safetensors"))
    """
    verbs = {**REPLAY, **(replay or {})}
    model, log = base, read_log(path)
    for entry in log[_made_already(base, log, path) :]:
        verb = entry["verb"]
        if verb not in verbs:
            raise RunFolderError(
                f'{path} holds the change "{verb}", which is not one of ours: pass replay={{"{verb}": function}}.'
            )
        try:
            model = verbs[verb](model, entry)
        except CompressAugError as error:
            raise RunFolderError(f"{path} does not fit this model: {_with_advice(str(error))}") from error
        except KeyError as error:
            if verb in (replay or {}):
                raise
            raise RunFolderError(f'{path} is damaged: its change "{verb}" lacks {error}.') from error
    _load_weights(model, path)
    replace_log(model, log)
    return model


def _made_already(base: nn.Module, log: list[LogEntry], path: Path) -> int:
    """How many of the logged changes the base has: a run may start on a model that was changed before."""
    there = surgery_log(base)
    if there != log[: len(there)]:
        verbs = ", ".join(entry["verb"] for entry in there)
        reason = f"it was changed already ({verbs}), otherwise than the model in the file"
        raise RunFolderError(f"{path} does not fit this model: {_with_advice(reason)}")
    return len(there)


def _with_advice(reason: str) -> str:
    """A verb's own advice is for who calls it; here the only one that helps is another base."""
    advice = "ive the model that the checkpoint was made from."
    return reason if reason.endswith(advice) else f"{reason.rstrip('.')}. G{advice}"


def _check_number_types(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loading would convert without a word, and the model then compute something else than the stored one."""
    for name, value in model.state_dict().items():
        stored = weights.get(name)
        if stored is not None and isinstance(value, Tensor) and stored.dtype != value.dtype:
            raise RunFolderError(
                f'{path} does not fit this model: "{name}" is stored as {stored.dtype}, and the model holds '
                f"{value.dtype}. Give the model with .to({stored.dtype})."
            )


def _load_weights(model: nn.Module, path: Path) -> None:
    device = device_of(model)
    with safe_open(path, framework="pt") as opened:
        weights = {name: opened.get_tensor(name).to(device) for name in opened.keys()}  # noqa: SIM118
    _check_number_types(model, weights, path)
    try:
        model.load_state_dict(weights, strict=True)
        # What a masked layer computes with is not stored: without this it would be stale until the first forward.
        for name in masked_layers(model):
            holder, key = holder_of(model, name)
            setattr(holder, key, getattr(holder, f"{key}_orig") * getattr(holder, f"{key}_mask"))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise RunFolderError(f"{path} does not fit this model: {_with_advice(reason)}") from None
