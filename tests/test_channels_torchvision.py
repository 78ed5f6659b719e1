"""Cut channels of torchvision's nets: each gets smaller, still computes, trains, is saved and exported."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from compress_aug import checkpoint, deploy, measure
from compress_aug.channels import cut_channels
from compress_aug.channels.graph import difference
from compress_aug.deploy.runtime import Session
from compress_aug.surgery import copy_model, surgery_log

SIZE = 64
CLASSES = 5
OUTPUTS = "its outputs are those of the model"

# What is left whole beside the classifier, by the reason's first words.
NETS: dict[str, str | None] = {
    "resnet18": None,
    "resnet50": None,
    "mobilenet_v2": None,
    "mobilenet_v3_small": None,
    "shufflenet_v2_x1_0": "its channels go through view",
    "efficientnet_b0": None,
    "regnet_y_400mf": None,
    "densenet121": None,
    "squeezenet1_1": None,
    "googlenet": None,
    "convnext_tiny": None,
    # The tokens' channels run through attention.
    "vit_b_16": "the model does not run without them",
}


def fresh(name: str) -> nn.Module:
    torch.manual_seed(0)
    given = {"image_size": SIZE} if name == "vit_b_16" else {}
    if name == "googlenet":
        given = {"aux_logits": False, "init_weights": False}
    model: nn.Module = getattr(torchvision.models, name)(num_classes=CLASSES, **given)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_cuts(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    with torch.no_grad():
        model.train()(images())
    whole = copy_model(model.eval())
    cut_channels(model, torch.zeros(1, 3, SIZE, SIZE), until={"macs": 0.6})
    entry = surgery_log(model)[-1]
    shape = (3, SIZE, SIZE)
    assert 0.5 < measure.macs(model, shape) / measure.macs(whole, shape) <= 0.6
    reasons = set(entry["left_alone"].values()) - {OUTPUTS}
    expected = NETS[name]
    assert not reasons if expected is None else {reason[: len(expected)] for reason in reasons} == {expected}
    # With the weights it has, beside the random ones of the trial.
    assert difference(whole, images(), entry["removed"]) is None

    logits = model(images())
    assert logits.shape == (2, CLASSES) and logits.isfinite().all()
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    checkpoint.save(model, tmp_path / "model.safetensors")
    rebuilt = checkpoint.rebuild(fresh(name), tmp_path / "model.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(images()), model(images()))

    deploy.write(model, tmp_path / "model.onnx", image_shape=shape)
    file = torch.from_numpy(Session(tmp_path / "model.onnx").run(images().numpy()))
    torch.testing.assert_close(file, logits.detach(), rtol=1e-2, atol=1e-3)
