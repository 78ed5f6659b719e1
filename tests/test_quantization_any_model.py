"""Any model can be quantized: each architecture in miniature, what has no graph, functional calls, attention.

The reference is the float model: the quantized one without its quantizers computes what it did, attention what
torch's own does, and the file that is written what the quantized model does.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    GoogLeNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    VisionTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck

from compress_aug import deploy, quantization
from compress_aug.deploy.runtime import Session
from compress_aug.errors import ParityError, QuantizeError
from compress_aug.measure import effective_weight
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import layers
from compress_aug.quantization.attention import Attention
from compress_aug.quantization.finalize import integer_layers
from compress_aug.quantization.graph import traced
from compress_aug.surgery import copy_model, surgery_log


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(number: int = 4, size: int = 16) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained_a_little(model: nn.Module, batch: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms and the heads that start at zero no longer trivial."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(batch)
    return model.eval()


def quantized(model: nn.Module, batch: Tensor, **options: Any) -> tuple[nn.Module, list[str]]:
    notes: list[str] = []
    made = quantization.quantize(model, batch[:1], calibration=[batch], note=notes.append, **options)
    return made, notes


def goes_all_the_way(make: Callable[[], nn.Module], batch: Tensor, path: Path | None, **options: Any) -> Any:
    """Quantize, compare with float, train a step, replay, finalize and export; the model, the notes, the audit."""
    net = trained_a_little(make(), batch)
    expected = net(batch).detach()
    largest = float(expected.abs().max())
    made, notes = quantized(copy_model(net), batch, **options)
    twin = quantization.without_quantizers(made)
    assert not quantization.is_quantized(twin)
    assert torch.allclose(twin(batch), expected, atol=1e-4 * largest)
    assert float((made(batch) - expected).detach().abs().max()) < 0.2 * largest
    made.train()
    functional.cross_entropy(made(batch), torch.arange(len(batch)) % 4).backward()
    assert [name for name, parameter in made.named_parameters() if parameter.grad is None] == []
    torch.optim.SGD(made.parameters(), lr=1e-4).step()
    made.eval()
    fresh = quantization.replay(make(), surgery_log(made)[-1]).eval()
    fresh.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(fresh(batch), made(batch))
    quantization.finalize(made)
    if path is None:
        return made, notes, None
    deploy.write(made, path, image_shape=tuple(batch.shape[1:]))
    deploy.require(deploy.check_parity(made, path, [(batch, torch.zeros(len(batch)).long())]))
    return made, notes, deploy.audit(path)


# ------------------------------------------------------------------- architectures


def tiny_mobilenet_v3() -> nn.Module:
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [block(8, 3, 16, 8, True, "RE", stride=1), block(8, 5, 24, 16, True, "HS", stride=2)]
    return MobileNetV3(settings, last_channel=32, num_classes=4)


def tiny_efficientnet() -> nn.Module:
    settings = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 2)]
    return EfficientNet(settings, dropout=0.2, num_classes=4, last_channel=32)


def tiny_regnet() -> nn.Module:
    blocks = BlockParams([1, 1], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return RegNet(blocks, num_classes=4, stem_width=8)


def tiny_vit() -> nn.Module:
    return VisionTransformer(16, 4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)


def googlenet(aux_logits: bool) -> nn.Module:
    return GoogLeNet(num_classes=4, aux_logits=aux_logits, init_weights=False)


MINIATURES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4),
    "mobilenet_v2": lambda: MobileNetV2(
        4, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]
    ),
    "mobilenet_v3": tiny_mobilenet_v3,
    "shufflenet_v2": lambda: ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=4),
    "efficientnet": tiny_efficientnet,
    "regnet_y": tiny_regnet,
    "densenet": lambda: DenseNet(8, (2, 2), 16, num_classes=4),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=4),
    "vit": tiny_vit,
}


@pytest.mark.parametrize("make", MINIATURES.values(), ids=list(MINIATURES))
def test_architecture_in_miniature(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    size = 16 if make is tiny_vit else 32
    _, notes, audit = goes_all_the_way(make, images(size=size), tmp_path / "model.onnx")
    # Every layer, every sum and every product of attention finds its integer kernel.
    assert audit.float_layers == 0 and audit.integer_layers > 0
    assert len(notes) == (make is tiny_vit)


FULL = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("regnet_y_400mf", "densenet121", "convnext_tiny", "vit_b_16"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_architecture_of_torchvision(name: str, tmp_path: Path) -> None:
    options = {"image_size": 64} if name == "vit_b_16" else {}
    make = partial(torchvision.models.get_model, name, weights=None, num_classes=4, **options)
    _, _, audit = goes_all_the_way(make, images(8, size=64), tmp_path / "model.onnx")
    assert audit.float_layers == 0


@pytest.mark.slow
@pytest.mark.parametrize("aux_logits", [False, True])
def test_googlenet_goes_all_the_way(aux_logits: bool, tmp_path: Path) -> None:
    make = partial(googlenet, aux_logits)
    _, _, audit = goes_all_the_way(make, images(8, size=64), tmp_path / "model.onnx")
    assert audit.float_layers == 0


def test_auxiliary_outputs_are_left_out_and_it_is_said() -> None:
    batch = images(2, size=64)
    net = googlenet(True).eval()
    expected = net(batch)
    made, notes = quantized(net, batch)
    assert isinstance(made.train()(batch), Tensor)
    assert torch.allclose(quantization.without_quantizers(made).eval()(batch), expected, atol=1e-4)
    assert notes == [
        'left out, because evaluation does not run them: "aux1.conv.conv", "aux1.fc1", "aux1.fc2" and 3 more'
    ]


# ------------------------------------------------------------------- what has no graph


class Branching(nn.Module):
    """Two layers and a branch on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.odd = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.conv(x)))
        return self.odd(y) if y.sum() < 0 else self.odd(y) + x


class ModeDependent(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.odd(self.norm(self.conv(x)))
        return y * 2 if self.training else y


class HiddenWrite(Branching):
    """A write into a part of a tensor, which leaves no trace in a graph."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.norm(self.conv(x)))
        half = x[:, :2]
        half += 1
        return x


class Around(nn.Module):
    """A net around a part: a layer before it, two behind."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.part = nn.Conv2d(3, 8, 3), part
        self.tail, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(functional.relu(self.stem(x)))
        return self.fc(functional.relu(self.tail(x)).mean((2, 3)))


class BranchingRoot(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


REASONS: dict[type[nn.Module], str] = {
    Branching: "torch.fx cannot follow it (symbolically traced variables cannot be used as inputs to control flow)",
    ModeDependent: "it computes something else in training than in evaluation",
    HiddenWrite: "its graph computes something else; it may write into a tensor that has two names",
}


@pytest.mark.parametrize("kind", REASONS)
def test_part_without_a_graph_is_quantized_layer_by_layer(kind: type[nn.Module], tmp_path: Path) -> None:
    make = lambda: Around(kind())  # noqa: E731
    exported = None if kind is HiddenWrite else tmp_path / "model.onnx"
    made, notes, _ = goes_all_the_way(make, images(), exported)
    said = 'module "part" is quantized layer by layer ("part.conv", "part.odd")'
    assert notes[0] == f"{said}: {REASONS[kind]}"
    assert isinstance(made.get_submodule("part"), kind)
    assert set(quantization.weight_bits(made)) == {"stem", "part.conv", "part.odd", "tail", "fc"}
    assert set(quantization.weight_bits(made).values()) == {8}
    assert {name for name, _, _ in integer_layers(made)} == {"stem", "part.conv", "part.odd", "tail", "fc"}


def test_a_write_that_torchs_exporter_loses_is_not_taken_for_the_model(tmp_path: Path) -> None:
    """The model in torch is right, and so is ours; the file lacks the write, and the proof says where."""
    made, _, _ = goes_all_the_way(lambda: Around(HiddenWrite()), images(), None)
    path = tmp_path / "model.onnx"
    deploy.write(made, path, image_shape=(3, 16, 16))
    parity = deploy.check_parity(made, path, [(images(), torch.zeros(len(images())).long())])
    with pytest.raises(ParityError, match=r'first in layer "part\.odd"'):
        deploy.require(parity)


def test_model_whose_own_forward_has_no_graph_keeps_its_class(tmp_path: Path) -> None:
    made, notes, _ = goes_all_the_way(
        lambda: BranchingRoot(Branching()), images(), tmp_path / "model.onnx", weights=4, activations=6
    )
    assert type(made) is BranchingRoot
    names = '"stem", "part.conv", "part.odd", "tail", "fc"'
    assert notes == [f"BranchingRoot is quantized layer by layer ({names}): {OWN_FORWARD}"]
    expected = {"stem": 8, "part.conv": 4, "part.odd": 4, "tail": 4, "fc": 8}
    assert quantization.weight_bits(made) == expected
    for name, bits in {**expected, "part.conv": 6, "part.odd": 6, "tail": 6}.items():
        assert int(made.get_submodule(f"{name}.input_quantizer").act_quant.bit_width()) == bits
    assert surgery_log(made)[0]["float_norms"] == ["part.norm"]


OWN_FORWARD = REASONS[Branching].replace("follow it", "follow its own forward")


def test_layer_by_layer_computes_fake_quantization_of_weight_and_input() -> None:
    batch = images()
    made, _ = quantized(BranchingRoot(Branching()).eval(), batch)
    layer: Any = made.stem
    scale = float(layers.activation_scale(layer.input_quantizer))
    inputs = torch.fake_quantize_per_tensor_affine(batch, scale, 0, -128, 127)
    steps = layers.weight_scales(layer, effective_weight(layer)).view(-1, 1, 1, 1)
    weight = (layer.weight / steps).round() * steps
    expected = functional.conv2d(inputs, weight, layer.bias)
    # Values half-way between two steps may go either way.
    assert ((layer(batch) - expected).abs() < 1e-5).float().mean() > 0.98


def test_biases_of_layers_with_an_input_quantizer_are_snapped() -> None:
    made, _ = quantized(BranchingRoot(Branching()).eval(), images())
    quantization.finalize(made)
    state = {name: value.clone() for name, value in made.state_dict().items()}
    for _, layer, source in integer_layers(made):
        grid = layers.activation_scale(source) * layers.weight_scales(layer, effective_weight(layer))
        steps = layer.bias.detach().double() / grid.double()
        # Up to 10^5 steps, in float32.
        assert (steps - steps.round()).abs().max() < 1e-2
    quantization.finalize(made)
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("options", [{"weights": None}, {"activations": None}, {"first_and_last": "float"}])
def test_one_side_or_inner_layers_alone_without_a_graph(options: dict[str, Any]) -> None:
    made, _, _ = goes_all_the_way(lambda: BranchingRoot(Branching()), images(), None, **options)
    has_own = {name for name, layer in made.named_modules() if hasattr(layer, "input_quantizer")}
    every = {"stem", "part.conv", "part.odd", "tail", "fc"}
    expected = {"weights": every, "activations": set(), "first_and_last": every - {"stem", "fc"}}
    assert has_own == expected[next(iter(options))]


def test_masks_live_on_in_layers_without_a_graph() -> None:
    batch = images()
    net = mask_smallest(BranchingRoot(Branching()), 0.5)
    made, _ = quantized(net, batch)
    made.train()
    functional.cross_entropy(made(batch), torch.arange(4)).backward()
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    made(batch)
    layer: Any = made.get_submodule("part.conv")
    assert not layer.quant_weight().value[layer.weight_mask == 0].any()
    assert not copy_model(made).part.conv.quant_weight().value[layer.weight_mask == 0].any()


class TwoWays(nn.Module):
    """Which layers run depends on the images, and that of nothing but zeros is another than that of most."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.odd, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.usual(x) if x.abs().sum() > 0 else self.odd(x)
        return self.fc(functional.relu(x).mean((2, 3)))


def test_layers_that_the_example_ran_through_come_back_from_the_log() -> None:
    batch, base = images(), TwoWays().eval()
    made, _ = quantized(copy_model(base), batch)
    assert quantization.weight_bits(made) == {"usual": 8, "odd": 32, "fc": 8}
    again = quantization.replay(base, surgery_log(made)[0])
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(batch), made(batch))


def test_dorefa_layer_by_layer_heeds_bits_of_what_a_layer_reads() -> None:
    options: dict[str, Any] = {"scheme": "dorefa", "weights": 4, "activations": 4, "rescale": True}
    named = {"part.odd": {"activations": 3}}
    for signed, expected in ((None, {"part.conv": 8, "part.odd": 3, "tail": 8}), ("float", {})):
        made, _ = quantized(
            BranchingRoot(Branching()).eval(), images(), overrides=named, signed=signed, **options
        )
        found = {
            name: int(layer.input_quantizer.act_quant.bit_width())
            for name, layer in made.named_modules()
            if hasattr(layer, "input_quantizer")
        }
        assert found == expected


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * 2, self.bias)


class Borrowing(Branching):
    """Reads the weight of a layer instead of running it, beside a branch on values."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.conv2d(x, self.conv.weight, padding=1)
        return self.odd(y) if y.sum() < 0 else self.odd(y) + x


def test_layers_that_stay_float_are_named() -> None:
    _, notes, _ = goes_all_the_way(lambda: Around(OwnForward(8, 8, 1)), images(), None)
    assert notes == ['conv2d in module "part" stays float: its weight is computed and no plain parameter']
    batch = images()
    made, notes = quantized(Around(Borrowing()).eval(), batch)
    said = (
        "it does not run as a layer on the example: it lies in a branch that this input does not take, or what holds "
        "it reads its weight itself or calls it by keyword"
    )
    assert notes[1:] == [f'layer "part.conv" stays float: {said}']
    assert quantization.weight_bits(made)["part.conv"] == 32


def test_graph_keeps_a_failing_part_as_one_node() -> None:
    graph_model, kept = traced(Around(Branching()))
    targets = [node.target for node in graph_model.graph.nodes if node.op == "call_module"]
    assert targets == ["stem", "part", "tail", "fc"]
    assert list(kept) == ["part"]
    again, _ = traced(Around(Branching()), kept)
    assert [node.name for node in again.graph.nodes] == [node.name for node in graph_model.graph.nodes]


# ------------------------------------------------------------------- functional calls


class Functional(nn.Module):
    """Functional calls, loops, and flags that no image decides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.stem_bias = nn.Parameter(torch.zeros(8))
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)])
        self.depthwise = nn.Parameter(torch.randn(8, 1, 3, 3) * 0.2)
        self.weight = nn.Parameter(torch.randn(4, 8) * 0.3)
        self.with_depthwise = True

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.conv2d(x, self.stem_weight, self.stem_bias, padding=1))
        activations = (functional.silu, functional.hardswish, functional.gelu, functional.relu6)
        for number, (block, activation) in enumerate(zip(self.blocks, activations, strict=True)):
            x = x + activation(block(x)) if number % 2 == 0 else activation(block(x))
        if self.with_depthwise:
            x = functional.conv2d(x, self.depthwise, groups=8, stride=2)
        gate = functional.hardsigmoid(x.mean((2, 3), keepdim=True)) * torch.sigmoid(x)
        return functional.linear((x * gate).mean((2, 3)), self.weight)


def test_functional_calls_become_layers(tmp_path: Path) -> None:
    made, notes, audit = goes_all_the_way(Functional, images(), tmp_path / "model.onnx")
    where = "in the model's own forward becomes the layer"
    names = ("stem", "depthwise", "layer")
    calls = ("conv2d", "conv2d", "linear")
    assert notes == [f'{call} {where} "{name}"' for call, name in zip(calls, names, strict=True)]
    assert set(names) < set(quantization.weight_bits(made)) and audit.float_layers == 0
    assert surgery_log(made)[0]["made"] == sorted(names)
    assert not {"stem_weight", "depthwise", "weight"} & dict(made.named_parameters(recurse=False)).keys()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(functional.conv2d(x, self.weight).relu(), self.weight)
        return self.fc(functional.conv2d(x, self.weight, stride=2).mean((2, 3)))


def test_calls_with_one_weight_share_a_layer_if_their_settings_agree() -> None:
    made, notes, _ = goes_all_the_way(Twice, images(), None)
    assert [note.rpartition(" ")[2] for note in notes] == ['"layer"', '"layer_"']
    calls = [node.target for node in made.graph.nodes if node.op == "call_module"]
    assert calls.count("layer") == 2 and calls.count("layer_") == 1


class ByKeyword(nn.Module):
    """Names what it hands on, at every call that allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(input=self.norm(input=self.conv(input=x)))
        x = torch.cat(tensors=torch.chunk(input=x, chunks=2, dim=1)[::-1], dim=1)
        return self.fc(input=torch.mean(input=x, dim=(2, 3)))


def test_calls_by_keyword_are_followed(tmp_path: Path) -> None:
    made, _, _ = goes_all_the_way(ByKeyword, images(), tmp_path / "model.onnx")
    assert set(quantization.weight_bits(made).values()) == {8}
    assert functional.adaptive_avg_pool2d in {node.target for node in made.graph.nodes}


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = functional.relu(self.one(x)), functional.relu(self.other(x))
        return self.tail(torch.add(one, other, alpha=-1)).mean((2, 3))


def test_a_sum_with_a_factor_may_be_negative() -> None:
    batch, net = images(), Difference().eval()
    expected = net(batch).detach()
    made, _ = quantized(net, batch)
    assert (made(batch) - expected).abs().max() < 0.02 * expected.abs().max()


class InPlace(nn.Module):
    """In-place methods, the results of which later readers see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x.sigmoid_()
        y.sub_(0.5)
        return self.fc((x + y).mean((2, 3)))


def test_in_place_methods_are_followed() -> None:
    made, notes, _ = goes_all_the_way(InPlace, images(), None)
    assert notes == [] and isinstance(made, torch.fx.GraphModule)


# ------------------------------------------------------------------- attention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", ["self", "cross", "sizes", "no bias"])
def test_attention_in_parts_equals_torchs_own(batch_first: bool, case: str) -> None:
    options: dict[str, Any] = {"sizes": {"kdim": 6, "vdim": 10}, "no bias": {"bias": False}}.get(case, {})
    whole = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).eval()
    query = torch.randn(3, 5, 8)
    key, value = query, query
    if case in ("cross", "sizes"):
        key, value = torch.randn(3, 7, whole.kdim), torch.randn(3, 7, whole.vdim)
    masks = {
        "attn_mask": torch.randn(5, key.shape[1]),
        "key_padding_mask": torch.zeros(3, key.shape[1]).masked_fill(torch.arange(key.shape[1]) > 3, -1e4),
    }
    if not batch_first:
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    parts = Attention(whole, case in ("self", "no bias"))
    for given in ({}, masks, {"average_attn_weights": False}, {"need_weights": False}):
        expected, found = whole(query, key, value, **given), parts(query, key, value, **given)
        assert torch.allclose(found[0], expected[0], atol=1e-6)
        assert (found[1] is None) == (expected[1] is None)
        assert found[1] is None or torch.allclose(found[1], expected[1], atol=1e-6)
    mask = torch.ones(5, key.shape[1 if batch_first else 0]).tril().logical_not()
    hidden = [net(query, key, value, attn_mask=mask)[0] for net in (whole, parts)]
    assert torch.allclose(*hidden, atol=1e-6)


class Patches(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4)

    def mixed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.fc((x + self.mixed(self.norm(x))).mean(1))


class Cross(Patches):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        return self.attention(x, x * 2, x.abs())[0]


class Written(Patches):
    """Attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        n, tokens, width = x.shape
        return self.qkv(x).reshape(n, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        shares = ((q * 8**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((shares @ v).transpose(1, 2).flatten(2))


class Fused(Written):
    """Attention by torch's function."""

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Encoder(Patches):
    """torch's own transformer, whose layers have a way of their own in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@pytest.mark.parametrize("make", [Cross, Written, Fused, Encoder])
def test_attention_runs_on_integers(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    made, notes, audit = goes_all_the_way(make, images(), tmp_path / "model.onnx")
    assert audit.float_layers == 0
    found = {name.rpartition(".")[2] for name in quantization.weight_bits(made)}
    if make is Cross:
        assert {"q_proj", "k_proj", "v_proj", "out_proj"} < found
        assert notes == [
            'attention is quantized as projections, products and a softmax: "attention"',
        ]
    if make is Encoder:
        assert {"in_proj", "out_proj", "linear1", "linear2"} < found


def test_shares_of_attention_lie_on_a_grid_without_sign_and_scores_on_none() -> None:
    made, _ = quantized(Written().eval(), images())
    names = {name.rpartition(".")[2]: module for name, module in made.named_modules()}
    assert not names["softmax"].act_quant.is_signed
    products = [node for node in made.graph.nodes if node.target is torch.matmul or node.name == "matmul"]
    assert products and all("activation_quantizers" not in str(u.target) for u in products[0].users)


# ------------------------------------------------------------------- batch norms with more in them


class NormWithActivation(nn.BatchNorm2d):
    """As image model libraries have it: normalises, then runs what it holds."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        if training:
            self.num_batches_tracked.add_(1)
        x = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class SquaringNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def test_norm_with_an_activation_is_folded_without_losing_it(tmp_path: Path) -> None:
    make = lambda: Around(nn.Sequential(nn.Conv2d(8, 8, 1), NormWithActivation(8)))  # noqa: E731
    made, notes, audit = goes_all_the_way(make, images(), tmp_path / "model.onnx")
    assert notes == [] and audit.float_layers == 0
    assert surgery_log(made)[0]["float_norms"] == []
    assert torch.sigmoid in {node.target for node in made.graph.nodes}


class Swishing(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize("kind", [nn.SiLU, Swishing, nn.Hardswish])
def test_silu_becomes_a_product_and_keeps_its_name(kind: type[nn.Module], tmp_path: Path) -> None:
    make = lambda: Around(nn.Sequential(nn.Conv2d(8, 8, 1), kind(), nn.Conv2d(8, 8, 1)))  # noqa: E731
    made, _, audit = goes_all_the_way(make, images(), tmp_path / "model.onnx")
    assert audit.float_layers == 0
    seen: list[Tensor] = []
    made.get_submodule("part.1").register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        made(images())
    assert len(seen) == 1 and float(seen[0].min()) < 0
    Session(tmp_path / "model.onnx", optimized=tmp_path / "optimized.onnx")
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node}
    assert ({"QLinearSigmoid", "QLinearMul"} <= kinds) == issubclass(kind, nn.SiLU)


class Gated(nn.Module):
    """Gates of every kind, and a sigmoid that a layer reads, which is an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.swish = nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()
        self.reduce, self.scale = nn.Conv2d(8, 8, 1), nn.Hardsigmoid()
        self.mid, self.act, self.last = nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.stem(x))
        x = x * self.scale(self.reduce(x.mean((2, 3), keepdim=True)))
        x = self.last(self.act(self.mid(x)))
        return self.fc((x * torch.sigmoid(x.flatten(2)).unflatten(2, (16, 16))).mean((2, 3)))


def gate_bits(**options: Any) -> dict[str, int]:
    made = quantization.quantize(Gated().eval(), images(1), calibration=[images()], **options)
    found = {
        name.rpartition(".")[2]: module for name, module in made.named_modules() if "_quantizers." in name
    }
    # The sigmoid of SiLU was put in later than the call that the model makes itself.
    names = {"swish": "sigmoid_1", "scale": "scale", "act": "act", "call": "sigmoid"}
    return {name: int(found[node].act_quant.bit_width()) for name, node in names.items()}


def test_gates_keep_8_bits_where_activations_have_fewer() -> None:
    assert gate_bits(weights=4, activations=4) == {"swish": 8, "scale": 8, "act": 4, "call": 8}
    # Where devices take signed integers only.
    assert gate_bits(weights=4, activations=4, least_gate_bits=7)["scale"] == 7
    fewer = gate_bits(weights=4, activations=4, least_gate_bits=2)
    assert set(fewer.values()) == {4}


def test_overrides_name_gates_where_they_name_no_layer() -> None:
    bits = partial(gate_bits, weights=4, activations=4)
    assert bits(overrides={"SiLU": {"activations": 4}})["swish"] == 4
    assert bits(overrides={"swish": {"activations": 3}}) == {"swish": 3, "scale": 8, "act": 4, "call": 8}
    named = bits(overrides={"Hardsigmoid": {"activations": 5}, "sigmoid": {"activations": 6}})
    assert named == {"swish": 8, "scale": 5, "act": 4, "call": 6}
    # A pattern that picks layers says nothing of gates.
    assert bits(overrides={"*": {"activations": 4}})["scale"] == 8
    with pytest.raises(QuantizeError, match='"SiLU" names a gate, which has no weights'):
        bits(overrides={"SiLU": {"weights": 4}})
    with pytest.raises(QuantizeError, match=r'"Silu" matches no .*known are: .*SiLU'):
        bits(overrides={"Silu": {"activations": 4}})


def test_gates_of_a_log_without_their_bits_have_those_of_activations() -> None:
    made = quantization.quantize(Gated().eval(), images(1), weights=4, activations=4, calibration=[images()])
    entry = dict(surgery_log(made)[0])
    again = quantization.replay(Gated().eval(), entry)
    assert int(again.get_submodule("activation_quantizers.scale").act_quant.bit_width()) == 8
    del entry["least_gate_bits"]
    again = quantization.replay(Gated().eval(), entry)
    assert int(again.get_submodule("activation_quantizers.scale").act_quant.bit_width()) == 4


def test_norm_that_does_more_stays_float_and_it_is_said() -> None:
    make = lambda: Around(nn.Sequential(nn.Conv2d(8, 8, 1), SquaringNorm(8)))  # noqa: E731
    made, notes, _ = goes_all_the_way(make, images(), None)
    assert notes[0] == 'batch norm "part.1" stays float: SquaringNorm has a forward of its own'
    assert surgery_log(made)[0]["float_norms"] == ["part.1"]
