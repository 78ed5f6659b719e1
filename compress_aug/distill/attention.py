"""MHGD as a part of an objective: its heads are trained on the teacher before the student's first step, then frozen."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from compress_aug.distill.features import Seen
from compress_aug.distill.kd_svd import Reduction
from compress_aug.distill.mhgd import AttentionHeads, mhgd_loss
from compress_aug.distill.singular_vectors import singular_vectors
from compress_aug.surgery import freeze

# Of Adam. The papers do not say how the heads are trained.
_LR = 1e-3


class Attention:
    """`mhgd_loss`, with heads of its own.

    heads:     of each pair of levels
    attention: "pretrained" on the teacher; "random" leaves the first weights, with norms that do nothing
    epochs:    share of the stage's epochs for which the heads are trained beforehand, above 0
    steps:     the same as a number of steps, whatever the stage's length

    They are trained on the unchanged training images, by Adam with a learning rate of 0.001 [ours].
    Source: MHGD trains them for 40 of 200 epochs; the code of arXiv 2004.08861 leaves them random.
    """

    name: ClassVar[str] = "mhgd"
    levels: ClassVar[int] = 2

    def __init__(
        self,
        heads: int = 8,
        attention: Literal["pretrained", "random"] = "pretrained",
        epochs: float = 0.2,
        reduction: Reduction = "batchmean",
        *,
        steps: int | None = None,
    ) -> None:
        self._number, self._pretrained = heads, attention == "pretrained"
        self._epochs, self._given_steps, self._reduction = epochs, steps, reduction
        self._done = self._seed = 0
        self.heads: AttentionHeads
        self._optimizer: torch.optim.Optimizer

    def prepare(self, widths: Sequence[int], device: torch.device, seed: int) -> None:
        """Make the heads, for a teacher with maps of these widths."""
        self._seed, self._done = seed, 0
        self.heads = AttentionHeads(widths, self._number, seed).to(device).eval()
        self._optimizer = torch.optim.Adam(self.heads.parameters(), lr=_LR)

    def steps(self, epochs: int, steps_per_epoch: int) -> int:
        """For how many steps the heads are trained before a stage of so many epochs."""
        if not self._pretrained:
            return 0
        return self._given_steps or max(1, round(self._epochs * epochs * steps_per_epoch))

    def begin(
        self, training: Any, maps_of: Callable[[Tensor], list[Tensor]], each_step: Callable[[Any], bool]
    ) -> bool:
        """Train the heads as far as they are not; False if `each_step` asked for a pause.

        maps_of: inputs (N, C, H, W) -> the teacher's maps, (N, P, D) each
        """
        batches, size = training.data.train.batches, training.settings.batch_size
        per_epoch = training.data.train.steps(size, drop_last=True, world=1)
        steps = self.steps(training.settings.epochs, per_epoch)
        if self._done >= steps:
            return True
        generator = torch.Generator().manual_seed(self._seed)
        # Drawn anew in full, so that a training that is gone on with finds the seeds of the first time.
        orders = torch.randint(2**62, (-(-steps // per_epoch),), generator=generator).tolist()
        noises = torch.randint(2**62, (steps,), generator=generator).tolist()
        self.heads.train()
        while self._done < steps:
            epoch, within = divmod(self._done, per_epoch)
            # Each of several processes sees all images: the heads come out the same without a word between them.
            for batch in islice(batches(size, order_seed=orders[epoch], drop_last=True), within, None):
                images = batch.to(training.fabric.device).images
                with training.autocast():
                    maps = maps_of(training.inputs_of(images))
                self._step(maps, torch.Generator().manual_seed(noises[self._done]))
                self._done += 1
                if self._done < steps and each_step(training):
                    return False
                if self._done == steps:
                    break
        self._finish(training.fabric)
        return True

    def _step(self, maps: Sequence[Tensor], noise: torch.Generator) -> None:
        with torch.autocast(maps[0].device.type, enabled=False):
            vectors = [singular_vectors(level)[:, :, 0] for level in maps]
            loss = self.heads.estimation_loss(vectors, noise)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()

    def _finish(self, fabric: Any) -> None:
        self.heads.eval()
        if fabric.world_size > 1:
            # Devices round differently; the student's processes must ask the very same heads.
            self.heads.load_state_dict(fabric.broadcast(self.heads.state_dict()))

    def loss(self, seen: Seen) -> Tensor:
        """See `mhgd_loss`."""
        freeze(self.heads)
        return mhgd_loss(self.heads, *seen.vectors, reduction=self._reduction)

    def state_dict(self) -> dict[str, Any]:
        """The heads, and how far they are trained."""
        return {
            "heads": self.heads.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._done = state["done"]
