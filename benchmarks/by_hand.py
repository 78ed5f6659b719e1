"""What users wire by hand of stock tools, as one stage of a recipe: the side that by_hand.study.yaml compares with.

    PYTHONPATH=benchmarks compress-aug study benchmarks/by_hand.study.yaml --preset cpu --data path/to/cifar10 --jobs 1

Everything is what the tools' own pages show; of compress_aug there are only the images and the net to begin with:

augment    torchvision's RandAugment at one magnitude (31 bins, so that M means what it means in a recipe), crop, flip
cut        torch-pruning's pruner with group magnitude importance; its ratio is found by bisection, because it knows no
           budget of multiply-accumulates (`plain_cut` of pruning.py)
quantize   `brevitas.graph.quantize` with the same bits everywhere and learned scales (`stock_model` of qat.py)
train      a loop with SGD and a cosine, in float32
export     `export_onnx_qcdq`, and `torch.onnx.export` of the float net

The file is judged on the test split in ONNX Runtime and timed as an `export` stage times its own.
"""

import warnings
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import torch
from pruning import plain_cut  # this file and the next lie beside this one
from pydantic import Field
from qat import stock_model
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from compress_aug import Data, Setup, Stage, State, copy_model, deploy, measure
from compress_aug.errors import RecipeError

CALIBRATION = 512
EVALUATED_AT_A_TIME = 500


class ByHand(Stage):
    """Cut, train, quantize, train and export the model with stock tools.

    The model itself goes on as it came: what was made of it are others' layers, which no checkpoint of ours could
    build again. The stage's row of the report tells the sizes and the accuracy of what was made.
    """

    word: ClassVar[str] = "by_hand"
    changes_model: ClassVar[bool] = False

    macs: float = Field(gt=0, le=1, description="share of the multiply-accumulates that stays at most")
    classifier: str = Field("fc", description="the layer that is left whole")
    epochs: int = Field(ge=1, description="after the cut")
    lr: float = Field(gt=0)
    bits: int = Field(ge=2, le=8, description="of all weights and activations")
    qat_epochs: int = Field(ge=1)
    qat_lr: float = Field(gt=0)
    magnitude: int = Field(ge=0, le=30, description="the same in all epochs")
    batch_size: int = Field(128, ge=1)

    def title(self) -> str:
        return f"by hand: {self.macs:.0%} of the MACs, {self.bits} bits"

    def run(self, state: State, setup: Setup) -> State:
        data, device = setup.data, setup.fabric.device
        short = setup.rehearsal
        if setup.target.runtime != "onnxruntime":
            raise RecipeError("by_hand: the file is for ONNX Runtime; choose such a target")

        def train(model: nn.Module, epochs: int, lr: float, weight_decay: float) -> nn.Module:
            return trained(
                model.to(device),
                data,
                epochs=1 if short else epochs,
                lr=lr,
                weight_decay=weight_decay,
                magnitude=self.magnitude,
                batch_size=self.batch_size,
                seed=setup.seed,
            )

        dense = copy_model(state.model).cpu()
        cut = train(plain_cut(dense, self.macs, self.classifier), self.epochs, self.lr, 5e-4).cpu()
        images = [batch.cpu() for batch in setup.images(CALIBRATION)]
        made = train(
            stock_model(copy_model(cut), self.bits, images), self.qat_epochs, self.qat_lr, 1e-5
        ).cpu()
        setup.record("accuracy", accuracy(made, data))
        setup.record("parameters", measure.parameters(cut))
        setup.record("nonzero_parameters", measure.nonzero_parameters(cut))
        setup.record("macs", measure.macs(cut, data.image_shape))
        setup.record("bits", {"weights": self.bits})
        setup.record("export", exported(made, cut, setup))
        return state


def trained(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    magnitude: int,
    batch_size: int,
    seed: int,
) -> nn.Module:
    """The loop that everybody writes. Gives the model in eval mode."""
    height = data.image_shape[1]
    augment = v2.Compose(
        [
            v2.RandAugment(num_ops=2, magnitude=magnitude, num_magnitude_bins=31),
            v2.RandomCrop(height, padding=data.crop_padding),
            *([v2.RandomHorizontalFlip()] if data.flip else []),
        ]
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    steps = epochs * -(-len(data.train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    device = next(model.parameters()).device
    model.train()
    for epoch in range(epochs):
        for batch in data.train.batches(batch_size, order_seed=seed + epoch):
            images = torch.stack([augment(image) for image in batch.images.cpu()])
            logits = model(data.normalise(images.to(device)))
            loss = functional.cross_entropy(logits, batch.targets.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, data: Data) -> float:
    """On the test split, share in [0, 1]."""
    with torch.no_grad():
        return _share_right(data, lambda images: model(images).numpy())


def exported(made: nn.Module, cut: nn.Module, setup: Setup) -> dict[str, Any]:
    """Write both files; the row of the report's `exports`, with the keys that an `export` stage gives."""
    from brevitas.export import export_onnx_qcdq

    path, float_path = (setup.folder / name for name in ("model.onnx", "model.float.onnx"))
    example = torch.zeros(1, *setup.data.image_shape)
    # With both names given: the exporter would look for them in what torch.fx calls a graph, and fail.
    names = {"input_names": ["input"], "output_names": ["logits"]}
    options = {"opset_version": 13, "dynamo": False, "dynamic_axes": {"input": {0: "images"}}, **names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        export_onnx_qcdq(
            made.to(memory_format=torch.contiguous_format),
            args=example,
            export_path=str(path),
            keep_initializers_as_inputs=False,
            **options,
        )
        torch.onnx.export(cut.eval(), (example,), str(float_path), **options)
    audit = deploy.audit(path)
    times = deploy.latency(
        path,
        threads=setup.target.threads,
        repeats=5 if setup.rehearsal else 200,
        against=float_path,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {
        "file": path.name,
        "float_file": float_path.name,
        "target": setup.target.name,
        "proxy": setup.target.proxy,
        "threads": setup.target.threads,
        "bytes": path.stat().st_size,
        "float_bytes": float_path.stat().st_size,
        "accuracy": _share_right(setup.data, lambda images: session.run(None, {"input": images.numpy()})[0]),
        "integer_layers": audit.integer_layers,
        "float_layers": audit.float_layers,
        "latency_ms": {"p50": times.p50_ms, "p95": times.p95_ms},
        "float_latency_ms": {"p50": times.against_p50_ms, "p95": times.against_p95_ms},
        "memory_mb": times.memory_mb,
        "float_memory_mb": times.against_memory_mb,
    }


def _share_right(data: Data, logits_of: Any) -> float:
    right = total = 0
    for batch in data.test.batches(EVALUATED_AT_A_TIME):
        logits = logits_of(data.normalise(batch.images).cpu())
        right += int((np.argmax(logits, 1) == batch.targets.cpu().numpy()).sum())
        total += len(logits)
    return right / total
