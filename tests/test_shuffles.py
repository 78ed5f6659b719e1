"""Sizes as constants and shuffles folded into weights: tiny nets before and after, and where neither may happen."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_deploy import _run
from torch import Tensor, nn

from compress_aug import deploy, quantization
from compress_aug.deploy import rewrite as rewrites
from compress_aug.deploy.exporter import export_graph
from compress_aug.deploy.graph import Graph, lift_constants
from compress_aug.deploy.shapes import fixed_shapes

SHAPE = (3, 6, 6)


def _images(number: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    n, channels, height, width = x.size()
    return (
        x.view(n, groups, channels // groups, height, width)
        .transpose(1, 2)
        .contiguous()
        .view(n, channels, height, width)
    )


class Shuffle(nn.Module):
    """Blocks as ShuffleNet has them: half of the channels wait, the others are worked on, then all are shuffled."""

    def __init__(self, blocks: int = 3, last: str = "plain", groups: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.groups = last, groups
        self.stem = nn.Conv2d(3, 12, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(blocks))
        self.end = nn.Conv2d(12, 12, 1, groups=12 if last == "depthwise" else 1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            waiting, worked = x.chunk(2, dim=1)
            x = shuffled(torch.cat([waiting, block(worked).relu()], 1), self.groups)
        if self.last == "sum":
            x = x + x.flip(1)
        return self.fc(self.end(x).relu().mean((2, 3)))


class Repeated(nn.Module):
    """A shuffle in which each channel appears twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.end, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc(self.end(shuffled(torch.cat([x, x], 1))).relu().mean((2, 3)))


def _final(net: nn.Module, bits: int) -> nn.Module:
    images = _images(16)
    made = quantization.quantize(net.eval(), images[:1], weights=bits, activations=bits, calibration=[images])
    return quantization.finalize(made).eval()


def _written(net: nn.Module, path: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The file, and in how many places each rewrite did something."""
    written = deploy.write(net, path, image_shape=SHAPE, images=_images())
    assert all(one.max_abs_diff == 0 for one in written.rewrites)
    return onnx.load(str(path)), {one.name: one.places for one in written.rewrites}


def _count(model: onnx.ModelProto, *kinds: str) -> int:
    return sum(node.op_type in kinds for node in model.graph.node)


@pytest.mark.parametrize(("bits", "groups", "last"), [(4, 2, "plain"), (8, 3, "plain"), (8, 2, "depthwise")])
def test_shuffles_are_gone_and_no_integer_changes(tmp_path, monkeypatch, bits, groups, last):
    net = _final(Shuffle(last=last, groups=groups), bits)
    folded, places = _written(net, tmp_path / "a.onnx")
    assert places["fold_shuffles"] == 3
    assert _count(folded, "Transpose", "Shape") == 0
    # The channels of a depthwise layer have an order of their own.
    assert _count(folded, "Gather") == (last == "depthwise")
    monkeypatch.setattr(rewrites, "fold_shuffles", lambda graph: 0)
    plain, places = _written(net, tmp_path / "b.onnx")
    assert "fold_shuffles" not in places and _count(plain, "Transpose") == 3
    images = _images(32, 1).numpy()
    assert np.array_equal(_run(folded, images, optimize=True), _run(plain, images, optimize=True))
    onnx.checker.check_model(folded, full_check=True)
    assert deploy.audit(tmp_path / "a.onnx").float_layers == 0
    batch = [(_images(32, 1), torch.zeros(32).long())]
    deploy.require(deploy.check_parity(net, tmp_path / "a.onnx", batch))


@pytest.mark.parametrize("net", [Shuffle(blocks=1, last="sum"), Repeated()], ids=["sum", "twice"])
def test_shuffles_that_something_else_reads_stay(tmp_path, net):
    model, places = _written(_final(net, 8), tmp_path / "a.onnx")
    assert "fold_shuffles" not in places and _count(model, "Transpose") > 0


def test_a_layer_called_twice_gets_the_order_of_each_call(tmp_path):
    net = Shuffle(blocks=2)
    net.blocks[1] = net.blocks[0]
    _, places = _written(_final(net, 8), tmp_path / "a.onnx")
    assert places["fold_shuffles"] == 2


# Sizes as constants ------------------------------------------------------


class Sizes(nn.Module):
    def __init__(self, multiplies_images: bool) -> None:
        super().__init__()
        self.multiplies_images = multiplies_images

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        if self.multiplies_images:
            x = x.reshape(n * channels, height * width).reshape(n, channels, height * width)
        else:
            x = x.reshape(n, channels, height * width)
        first, _ = x.split([channels - 1, 1], 1)
        return first.reshape(first.shape[0], -1)


@pytest.mark.parametrize("multiplies_images", [False, True])
def test_sizes_become_constants_unless_they_depend_on_the_number_of_images(multiplies_images):
    stock, _, _ = export_graph(Sizes(multiplies_images), torch.zeros(1, *SHAPE), 13)
    graph = Graph(lift_constants(onnx.ModelProto.FromString(stock.SerializeToString())))
    assert fixed_shapes(graph) > 0
    changed = graph.finish()
    assert (_count(changed, "Shape") > 0) == multiplies_images
    onnx.checker.check_model(changed, full_check=True)
    for number in (1, 3):
        images = _images(number).numpy()
        assert np.array_equal(_run(changed, images), _run(stock, images))


def test_sizes_that_are_free_stay_computed():
    stock, _, _ = export_graph(Sizes(False), torch.zeros(1, *SHAPE), 13)
    stock.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    graph = Graph(lift_constants(onnx.ModelProto.FromString(stock.SerializeToString())))
    fixed_shapes(graph)
    images = torch.randn(2, 3, 9, 6).numpy()
    assert np.array_equal(_run(graph.finish(), images), _run(stock, images))
    assert _count(graph.model, "Shape") > 0


def test_a_float_file_has_fixed_sizes_too(tmp_path):
    model, places = _written(Shuffle().eval(), tmp_path / "a.onnx")
    assert set(places) == {"fixed_shapes"} and _count(model, "Shape") == 0
