"""Writing from anywhere: any model of the user's own, however it came to be, is written and is what it was.

The reference is the model itself in torch, on images that it has not seen.
"""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from compress_aug import cut_channels, deploy, finalize, mask_smallest, quantize
from compress_aug.surgery import copy_model

SHAPE = (3, 10, 10)


class Own(nn.Module):
    """A net that nothing of ours has built: a branch, a sum, functions instead of modules."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        stem = functional.relu(self.norm(self.stem(images)))
        branch = functional.relu(self.first(stem))
        joined = functional.max_pool2d(functional.relu(stem + self.second(branch)), 2)
        return self.head(joined.mean((2, 3)))


def own() -> nn.Module:
    """With statistics as after training."""
    net = Own().train()
    with torch.no_grad():
        for _ in range(5):
            net(images(32))
    return net.eval()


def images(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def float_model() -> nn.Module:
    return own()


def masked_model() -> nn.Module:
    net = own()
    prune.l1_unstructured(net.first, "weight", amount=0.75)
    return net


def masked_by_us() -> nn.Module:
    return mask_smallest(own(), 0.75)


def cut_model() -> nn.Module:
    return cut_channels(own(), images(1), until={"ratio": 0.5})


def quantized_by_us() -> nn.Module:
    return finalize(quantize(own(), images(1), weights=4, activations=4, calibration=[images(64)])).eval()


def quantized_by_brevitas() -> nn.Module:
    """What a user has who called brevitas.graph.quantize on a traced model."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas.graph.quantize import quantize as brevitas_quantize

    with warnings.catch_warnings():
        # Brevitas' own, about itself.
        warnings.simplefilter("ignore")
        net = brevitas_quantize(preprocess_for_quantize(own()))
        with torch.no_grad(), calibration_mode(net):
            net(images(64))
        return net.eval()


MODELS = [float_model, masked_model, masked_by_us, cut_model, quantized_by_us, quantized_by_brevitas]


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_any_model_is_written_as_it_is(build, tmp_path):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    test = images(128, seed=2)
    with torch.no_grad():
        wanted = copy_model(model)(test)
    deploy.write(model, tmp_path / "a.onnx", image_shape=SHAPE)

    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    parity = deploy.check_parity(model, tmp_path / "a.onnx", [(test, wanted.argmax(1))])
    deploy.require(parity)
    assert parity.accuracy >= 126 / 128
    quantized = "quantized" in build.__name__
    # A file of floats differs by the order of sums alone; steps of a quantizer are larger than that.
    assert quantized or parity.max_abs_diff < 1e-4
    audit = deploy.audit(tmp_path / "a.onnx")
    assert (audit.integer_layers > 0) == quantized
    onnx.checker.check_model(onnx.load(str(tmp_path / "a.onnx")), full_check=True)


def test_zeros_and_missing_channels_are_in_the_file(tmp_path):
    sizes = {}
    for build in (float_model, masked_model, cut_model):
        deploy.write(build(), tmp_path / "a.onnx", image_shape=SHAPE)
        graph = onnx.load(str(tmp_path / "a.onnx")).graph
        weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
        kernels = [value for value in weights if value.ndim == 4]
        sizes[build] = sum(value.size for value in kernels)
        zeros = max(float(np.mean(value == 0)) for value in kernels)
        assert (zeros >= 0.74) == (build is masked_model)
    assert sizes[cut_model] < 0.5 * sizes[float_model] == 0.5 * sizes[masked_model]


class _Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(48, 4)

    def forward(self, x):
        x = self.fc(x.flatten(1))
        if x.mean() > 100:
            x = -x
        return x


def test_a_branch_on_a_value_is_told_with_its_line(tmp_path):
    written = deploy.write(_Branching().eval(), tmp_path / "a.onnx", image_shape=(3, 4, 4))
    (note,) = written.notes
    assert note.startswith("test_write.py, line ") and "always goes the way that one example goes" in note
    assert (
        deploy.write(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), tmp_path / "b.onnx", image_shape=(3, 4, 4)
        ).notes
        == ()
    )
