"""fit: drives a Training to its end, shows it, and saves it so that a stop at any moment costs little."""

import io
import time
from pathlib import Path
from pickle import UnpicklingError

import torch
from lightning_fabric import Fabric
from torch import Tensor

from compress_aug.errors import Interrupted, RunFolderError
from compress_aug.folders import written_whole
from compress_aug.progress import EpochProgress, interrupt_flag
from compress_aug.training.loop import History, Training

# Work that a kill -9 may cost at most, when an epoch takes longer than this.
SAVE_EVERY_SECONDS = 300.0


def fit(
    training: Training,
    *,
    checkpoint: Path | None = None,
    progress: EpochProgress | None = None,
) -> History:
    """Train to the end of the last epoch and return one row per epoch.

    checkpoint: a file that is written after each epoch (and every few minutes, and at Ctrl-C); if it exists,
                training goes on from it and ends with the very same result.
    progress:   shows loss, accuracy, images/s and the time left.

    Raises Interrupted at Ctrl-C, once the state is saved; TrainingError when the loss is not a number.
    """
    if checkpoint is not None and checkpoint.exists():
        _load(training, checkpoint)
    # Several processes must stop after the same step, or one waits for the others for ever: they only stop
    # between epochs, where they can ask each other.
    alone = training.fabric.world_size == 1
    with interrupt_flag() as interrupted:
        saved = time.monotonic()

        def pause(training: Training) -> bool:
            if progress:
                progress.step(training)
            overdue = checkpoint is not None and time.monotonic() - saved > SAVE_EVERY_SECONDS
            return alone and (interrupted() or overdue)

        while training.epochs_done < training.settings.epochs:
            whole = training.epoch(pause)
            if whole and progress:
                progress.epoch(training)
            if checkpoint is not None and training.fabric.is_global_zero:
                _save(training, checkpoint)
                saved = time.monotonic()
            if _anywhere(training.fabric, interrupted()):
                epochs = training.settings.epochs
                raise Interrupted(f"Stopped in epoch {min(training.epochs_done + 1, epochs)} of {epochs}.")
    return training.history


def _anywhere(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is up in any process."""
    if fabric.world_size == 1:
        return flag
    raised = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    assert isinstance(raised, Tensor)
    return bool(raised > 0)


def _save(training: Training, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        # Through memory, because torch's own writer hides a full disk in many different errors.
        buffer = io.BytesIO()
        torch.save(training.state_dict(), buffer)
        temporary.write_bytes(buffer.getbuffer())


def _load(training: Training, path: Path) -> None:
    try:
        state = torch.load(path, map_location=training.fabric.device, weights_only=True)
        training.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError, TypeError, EOFError, OSError, UnpicklingError) as error:
        raise RunFolderError(
            f"{path} is not a state of this training, or damaged ({type(error).__name__}): delete it, and the "
            "stage begins anew."
        ) from error
