"""The nets of arXiv 2004.08861: sizes against published ones and formulas, values against the authors' code spelled
with functions, then every change that a recipe can make to them, then what wrong names are told.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
import torchvision
from rich.console import Console
from torch import Tensor, fx, nn
from torch.nn import functional
from toys import tiny_data

import compress_aug
from compress_aug import Attach, Drop, Prune, PruneChannels, Quantize, Recipe, Train, deploy, measure
from compress_aug.channels import cut_channels
from compress_aug.distill.taps import Taps
from compress_aug.errors import ModelError
from compress_aug.inheritance import attach_layers, attached_at, drop_layers
from compress_aug.measure import parameters
from compress_aug.models import alexnet, check_fits, load_model, preresnet, pyramidnet, resnet18, wrn
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import finalize, quantize
from compress_aug.surgery import copy_model, surgery_log

SHAPE = (3, 16, 16)

# One of each kind, as small as it gets: basic blocks with and without a shortcut of its own, and bottlenecks.
SMALL: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: alexnet(4, width=1 / 16, image_size=SHAPE[1:]),
    "resnet18": lambda: resnet18(4, width=8),
    "wrn_10_2": lambda: wrn(10, 2, 4),
    "preresnet_14": lambda: preresnet(14, 4, width=8),
    "preresnet_11": lambda: preresnet(11, 4, width=8),
    "pyramidnet_14_12": lambda: pyramidnet(14, 12, 4),
    "pyramidnet_11_9": lambda: pyramidnet(11, 9, 4),
}
PREACTIVATION = ("wrn_10_2", "preresnet_14", "preresnet_11")
# What takes seconds is tried on these; on all of them among the slow tests.
QUICK = ("alexnet", "wrn_10_2", "pyramidnet_11_9")
PYRAMIDS = ("pyramidnet_14_12", "pyramidnet_11_9")

# Parameters in millions as the papers print them, with how many classes.
PRINTED = {
    # Zagoruyko and Komodakis, arXiv 1605.07146, tables 3 and 4.
    "wrn_40_1": (10, 0.6),
    "wrn_40_2": (10, 2.2),
    "wrn_16_8": (10, 11.0),
    "wrn_22_8": (10, 17.2),
    "wrn_28_10": (10, 36.5),
    # The same authors, arXiv 1612.03928, table 1.
    "wrn_16_1": (10, 0.2),
    "wrn_16_2": (10, 0.7),
    # Han et al., arXiv 1610.02915, tables of CIFAR; the first four with basic blocks.
    "pyramidnet_110_48": (10, 1.7),
    "pyramidnet_110_84": (10, 3.8),
    "pyramidnet_110_270": (10, 28.3),
    "pyramidnet_164_48": (10, 1.7),
    "pyramidnet_164_84": (10, 3.8),
    "pyramidnet_164_270": (10, 27.0),
    "pyramidnet_200_240": (10, 26.6),
    "pyramidnet_236_220": (10, 26.8),
    "pyramidnet_272_200": (10, 26.0),
    # arXiv 1605.07146, table 4, of He et al., arXiv 1603.05027.
    "preresnet_110": (10, 1.7),
    "preresnet_164": (10, 1.7),
    "preresnet_1001": (10, 10.2),
}

# The exact numbers that the model zoo pytorchcv 0.0.74 asserts of its nets, trained to the papers' accuracies.
EXACT = {
    ("wrn_16_10", 10): 17_116_634,
    ("wrn_28_10", 10): 36_479_194,
    ("wrn_28_10", 100): 36_536_884,
    ("wrn_40_8", 10): 35_748_314,
    ("preresnet_20", 10): 272_282,
    ("preresnet_56", 10): 855_578,
    ("preresnet_110", 10): 1_730_522,
    ("preresnet_164", 10): 1_703_258,
    ("preresnet_1001", 10): 10_327_706,
    ("pyramidnet_110_48", 10): 1_772_706,
    ("pyramidnet_110_84", 10): 3_904_446,
    ("pyramidnet_110_270", 10): 28_485_477,
    ("pyramidnet_164_270", 10): 27_216_021,
    ("pyramidnet_200_240", 10): 26_752_702,
    ("pyramidnet_200_240", 100): 26_844_952,
    ("pyramidnet_272_200", 10): 26_210_842,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@cache
def empty(name: str, classes: int = 10) -> nn.Module:
    """The net without memory for its weights: some have 36 million."""
    with torch.device("meta"):
        return load_model(name, classes=classes, image_shape=(3, 32, 32))


def settled(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """With statistics of real batches, and norms of which no two channels are alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, *shape))
    return model.eval()


def small(name: str) -> nn.Module:
    return settled(SMALL[name]())


def images(number: int = 3) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(1))


def refused(spec: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec, classes=10, image_shape=(3, 32, 32))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- sizes


def preactivation_size(widths: list[int], units: int, classes: int, bottleneck: bool) -> int:
    """From the papers' description: channels of stem and stages; every norm has two numbers a channel."""
    total = 3 * 9 * widths[0]
    for before, after in pairwise(widths):
        total += before * after if before != after else 0
        for entering in [before] + [after] * (units - 1):
            inside = after // 4 if bottleneck else after
            total += 2 * entering + 2 * inside
            if bottleneck:
                total += entering * inside + 9 * inside * inside + 2 * inside + inside * after
            else:
                total += 9 * entering * inside + 9 * inside * after
    return total + 2 * widths[-1] + (widths[-1] + 1) * classes


def pyramid_widths(depth: int, alpha: int, bottleneck: bool) -> list[int]:
    """Channels inside each unit, added up in floats as the authors' code does."""
    units = 3 * ((depth - 2) // (9 if bottleneck else 6))
    width, widths = 16.0, []
    for _ in range(units):
        width += alpha / units
        widths.append(int(width + 0.5))
    return widths


def pyramid_size(depth: int, alpha: int, classes: int, bottleneck: bool) -> int:
    total, entering = 3 * 9 * 16 + 2 * 16, 16
    for inside in pyramid_widths(depth, alpha, bottleneck):
        if bottleneck:
            total += 2 * entering + entering * inside + 2 * inside + 9 * inside * inside + 2 * inside
            total += 4 * inside * inside + 2 * 4 * inside
        else:
            total += 2 * entering + 9 * entering * inside + 2 * inside + 9 * inside * inside + 2 * inside
        entering = 4 * inside if bottleneck else inside
    return total + 2 * entering + (entering + 1) * classes


def size_by_formula(name: str, classes: int) -> int:
    word, depth, *rest = name.split("_")
    layers = int(depth)
    deep = layers >= 164
    if word == "pyramidnet":
        return pyramid_size(layers, int(rest[0]), classes, deep)
    if word == "wrn":
        wide = int(rest[0])
        return preactivation_size([16, 16 * wide, 32 * wide, 64 * wide], (layers - 4) // 6, classes, False)
    widths = [16, 64, 128, 256] if deep else [16, 16, 32, 64]
    return preactivation_size(widths, (layers - 2) // (9 if deep else 6), classes, deep)


@pytest.mark.parametrize("name", PRINTED)
def test_sizes_are_those_that_the_papers_print(name: str) -> None:
    classes, millions = PRINTED[name]
    model = empty(name, classes)
    norms = sum(parameters(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    # The papers leave the norms out of some numbers, and cut digits off as often as they round.
    assert (parameters(model) - norms) / 1e6 - 0.14 < millions < parameters(model) / 1e6 + 0.05


@pytest.mark.parametrize(("name", "classes"), EXACT)
def test_sizes_are_exactly_those_of_other_implementations(name: str, classes: int) -> None:
    assert parameters(empty(name, classes)) == EXACT[name, classes]


@pytest.mark.parametrize("name", PRINTED)
def test_sizes_follow_from_the_papers_descriptions(name: str) -> None:
    assert parameters(empty(name)) == size_by_formula(name, 10)


@pytest.mark.parametrize(
    "name", ["wrn_16_4", "wrn_28_10", "preresnet_32", "preresnet_44", "pyramidnet_20_12"]
)
def test_sizes_follow_with_100_classes_too(name: str) -> None:
    assert parameters(empty(name, 100)) == size_by_formula(name, 100)


def test_the_pairs_of_the_paper_have_these_sizes() -> None:
    pairs = {"wrn_16_2": 703_284, "wrn_16_4": 2_772_020, "preresnet_32": 472_564, "preresnet_44": 666_996}
    assert {name: parameters(empty(name, 100)) for name in pairs} == pairs


def test_resnet18_has_the_size_known_for_cifar() -> None:
    """The number of every public CIFAR form of it; torchvision's with a stem of 3x3 instead of 7x7."""
    assert parameters(empty("resnet18")) == 11_173_962
    assert parameters(empty("resnet18", 100)) == 11_220_132
    reference = parameters(torchvision.models.resnet18(num_classes=10))
    assert parameters(empty("resnet18")) == reference - 64 * 3 * (49 - 9)


def test_alexnet_has_the_size_of_the_papers_code() -> None:
    convolutions = [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)]
    expected = sum(inputs * outputs * side**2 + 2 * outputs for inputs, outputs, side in convolutions)
    expected += (256 * 4 * 4 + 4096) * 4096 + 2 * (4096 + 4096)
    for classes in (10, 100):
        assert parameters(empty("alexnet", classes)) == expected + 4096 * classes
    assert parameters(empty("alexnet")) == 36_082_624


@pytest.mark.parametrize(
    ("depth", "alpha", "last"),
    [(110, 48, 64), (110, 270, 286), (164, 84, 400), (200, 240, 1024), (272, 200, 864)],
)
def test_pyramids_widen_as_in_the_paper(depth: int, alpha: int, last: int) -> None:
    """The last widths are printed in the authors' tables, "output feat. dimension"."""
    with torch.device("meta"):
        model = pyramidnet(depth, alpha, 10)
    units = [unit for stage in (model.layer1, model.layer2, model.layer3) for unit in stage]
    factor = 4 if depth >= 164 else 1
    assert [unit.leaving for unit in units] == [factor * w for w in pyramid_widths(depth, alpha, factor == 4)]
    assert model.fc.in_features == last


@pytest.mark.parametrize(
    ("depth", "bottleneck"),
    [(20, False), (32, False), (44, False), (56, False), (110, False), (164, True), (29, True), (170, False)],
)
def test_the_depth_decides_the_kind_of_block(depth: int, bottleneck: bool) -> None:
    model = empty(f"preresnet_{depth}")
    convolutions = [
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name
    ]
    assert len(convolutions) + 1 == depth
    assert any("third" in name for name in convolutions) == bottleneck


def test_a_recipe_can_ask_for_bottlenecks() -> None:
    spec = {"name": "preresnet_56", "bottleneck": True}
    with torch.device("meta"):
        model = load_model(spec, classes=10, image_shape=(3, 32, 32))
    assert (
        parameters(model) == preactivation_size([16, 64, 128, 256], 6, 10, True) != EXACT["preresnet_56", 10]
    )


# --- values against the authors' code


class Reference:
    """The weights of a net, and the authors' code spelled with functions."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = model.state_dict()

    def norm(self, x: Tensor, name: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(self.weights[f"{name}.{key}"] for key in names))

    def active(self, x: Tensor, name: str) -> Tensor:
        return functional.relu(self.norm(x, name))

    def convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def classify(self, x: Tensor) -> Tensor:
        x = self.active(x, "bn").mean((2, 3))
        return functional.linear(x, self.weights["fc.weight"], self.weights["fc.bias"])

    def units(self) -> list[tuple[str, int]]:
        """The name of each unit and its stride."""
        names = dict.fromkeys(".".join(name.split(".")[:2]) for name in self.weights if name[:5] == "layer")
        return [(name, 2 if name in ("layer2.0", "layer3.0") else 1) for name in names]

    def preactivation(self, x: Tensor) -> Tensor:
        x = self.convolve(x, "conv1")
        for unit, stride in self.units():
            active = self.active(x, f"{unit}.bn1")
            change = self.convolve(active, f"{unit}.conv1", stride)
            change = self.convolve(self.active(change, f"{unit}.bn2"), f"{unit}.conv2")
            if f"{unit}.third.0.weight" in self.weights:
                change = self.convolve(self.active(change, f"{unit}.third.0"), f"{unit}.third.2")
            changes = f"{unit}.shortcut.weight" in self.weights
            x = change + (self.convolve(active, f"{unit}.shortcut", stride) if changes else x)
        return self.classify(x)

    def pyramid(self, x: Tensor) -> Tensor:
        x = self.norm(self.convolve(x, "conv1"), "bn1")
        for unit, stride in self.units():
            change, last = self.norm(x, f"{unit}.change.0"), f"{unit}.change.8.weight" in self.weights
            change = self.convolve(change, f"{unit}.change.1", 1 if last else stride)
            change = self.convolve(
                self.active(change, f"{unit}.change.2"), f"{unit}.change.4", stride if last else 1
            )
            if last:
                change = self.convolve(self.active(change, f"{unit}.change.5"), f"{unit}.change.7")
            change = self.norm(change, f"{unit}.change.{8 if last else 5}")
            shortcut = functional.avg_pool2d(x, 2) if stride == 2 else x
            zeros = torch.zeros(len(x), change.shape[1] - x.shape[1], *change.shape[2:])
            x = change + torch.cat([shortcut, zeros], 1)
        return self.classify(x)

    def alexnet(self, x: Tensor) -> Tensor:
        x = functional.conv2d(functional.pad(x, (5, 5, 5, 5)), self.weights["features.0.weight"])
        x = functional.max_pool2d(self.active(x, "features.1"), 2)
        x = functional.max_pool2d(self.active(self.convolve(x, "features.4"), "features.5"), 2)
        for number in (8, 11, 14):
            x = self.active(self.convolve(x, f"features.{number}"), f"features.{number + 1}")
        x = functional.max_pool2d(x, 2).flatten(1)
        for number in (0, 3):
            x = functional.linear(x, self.weights[f"classifier.{number}.weight"])
            x = self.active(x, f"classifier.{number + 1}")
        return functional.linear(x, self.weights["classifier.6.weight"])


@pytest.mark.parametrize("name", [*PREACTIVATION, *PYRAMIDS, "alexnet"])
def test_values_are_those_of_the_authors_code(name: str) -> None:
    model = small(name)
    reference = Reference(model)
    code = reference.alexnet
    if name != "alexnet":
        code = reference.pyramid if name in PYRAMIDS else reference.preactivation
    with torch.no_grad():
        torch.testing.assert_close(model(images()), code(images()))


def test_resnet18_is_torchvisions_with_another_start() -> None:
    model, reference = resnet18(10).eval(), torchvision.models.resnet18(num_classes=10).eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images()), reference(images()))
        assert model.layer3(model.layer2(model.layer1(torch.zeros(1, 64, 32, 32)))).shape[2:] == (8, 8)


# --- what the rest of the package needs of every net


@pytest.mark.parametrize("name", SMALL)
def test_traces_copies_and_learns(name: str) -> None:
    model = small(name)
    with torch.no_grad():
        expected = model(images())
        assert torch.equal(fx.symbolic_trace(model)(images()), expected)
        assert torch.equal(copy_model(model)(images()), expected)
    model.train()(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 25), (1, 8, 8)])
@pytest.mark.parametrize("spec", ["wrn_10_1", "preresnet_11", "pyramidnet_14_12", "alexnet", "resnet18"])
def test_other_images_and_classes_fit(spec: str, shape: tuple[int, int, int]) -> None:
    widths = {"alexnet": 1 / 16, "resnet18": 8}
    asked = {"name": spec, **({"width": widths[spec]} if spec in widths else {})}
    model = load_model(asked, classes=7, image_shape=shape)
    check_fits(model, shape, 7)
    assert model.train()(torch.randn(2, *shape)).shape == (2, 7)


def test_alexnets_linear_layers_never_outgrow_those_of_32x32() -> None:
    sizes = {
        (32, 32): 4096,
        (28, 28): 4096,
        (64, 64): 4096,
        (224, 160): 4096,
        (16, 16): 1024,
        (30, 100): 4096,
    }
    with torch.device("meta"):
        assert {size: alexnet(10, image_size=size).classifier[0].in_features for size in sizes} == sizes


@pytest.mark.parametrize("name", SMALL)
def test_masks_hold_the_asked_share(name: str) -> None:
    model = mask_smallest(small(name), 0.5)
    assert measure.sparsity(model) == pytest.approx(0.5, abs=1e-3)
    assert model(images()).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_a_cut_net_equals_the_whole_with_these_channels_at_zero(name: str) -> None:
    model = small(name)
    whole = copy_model(model)
    cut_channels(model, torch.zeros(1, *SHAPE), until={"ratio": 0.5}, round_to=2)
    assert parameters(model) < 0.6 * parameters(whole)
    classifier = "classifier.6" if name == "alexnet" else "fc"
    assert surgery_log(model)[-1]["left_alone"] == {classifier: "its outputs are those of the model"}
    kept = dict(model.named_modules())
    for path, norm in whole.named_modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            # No two channels are alike, so each is found again by its scale.
            gone = ~torch.isin(norm.weight, kept[path].weight)
            with torch.no_grad():
                norm.weight[gone] = 0
                norm.bias[gone] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(images()), whole(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_extra_layers_come_and_go(name: str) -> None:
    model = small(name)
    before = copy_model(model)
    attach_layers(model, torch.zeros(1, *SHAPE), blocks=1)
    assert attached_at(model) == {"alexnet": "features", "resnet18": "layer4"}.get(name, "relu")
    with torch.no_grad():
        torch.testing.assert_close(model(images()), before(images()))
    drop_layers(model)
    assert list(model.state_dict()) == list(before.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_maps_for_distillation_are_found_at_every_resolution(name: str) -> None:
    sides = {"alexnet": [16, 8, 4], "resnet18": [16, 8, 4, 2]}.get(name, [16, 8, 4])
    model = small(name)
    with Taps(model, torch.zeros(1, *SHAPE)) as taps:
        model(images())
        assert [features.shape[-1] for features in taps.take()] == sides


def test_alexnet_can_be_tapped_where_the_paper_does() -> None:
    model = settled(alexnet(4, width=1 / 16), (3, 32, 32))
    with Taps(model, torch.zeros(1, 3, 32, 32), [f"features.{number}" for number in (7, 10, 13, 17)]) as taps:
        model(torch.randn(2, 3, 32, 32))
        shapes = [tuple(features.shape[1:]) for features in taps.take()]
    assert shapes == [(12, 8, 8), (24, 8, 8), (16, 8, 8), (16, 4, 4)]


def exported(name, path, bits, **options):
    """The largest error of quantizing, relative to the logits; the audit; parity of file and model."""
    model, batch = small(name), images(32)
    with torch.no_grad():
        expected = model(batch)
        made = quantize(
            model, torch.zeros(1, *SHAPE), weights=bits, activations=bits, calibration=[batch], **options
        ).eval()
        error = (made(batch) - expected).abs().mean() / expected.abs().mean()
    finalize(made)
    deploy.write(made, path, image_shape=SHAPE)
    return (
        float(error),
        deploy.audit(path),
        deploy.check_parity(made, path, [(batch, torch.zeros(32).long())]),
    )


def weighted_layers(name: str) -> int:
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in SMALL[name]().modules())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in SMALL]
)
def test_8_bits_compute_nearly_the_same_on_integer_kernels(name: str, tmp_path) -> None:
    error, found, parity = exported(name, tmp_path / "model.onnx", 8)
    assert error < 0.1
    assert parity.wrong is None
    assert found.integer_layers >= weighted_layers(name)
    assert found.float_layers == 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
@pytest.mark.parametrize("name", SMALL)
def test_4_bits_run_on_integer_kernels_too(name: str, batch_norm: str, tmp_path) -> None:
    _, found, parity = exported(name, tmp_path / "model.onnx", 4, batch_norm=batch_norm)
    assert parity.wrong is None
    assert found.float_layers == 0
    assert found.integer_layers >= weighted_layers(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "floats"), [("alexnet", ["features.0", "classifier.6"]), ("resnet18", ["conv1", "fc"])]
)
def test_dorefa_leaves_the_first_and_last_weights_float_as_the_paper_does(name, floats, tmp_path) -> None:
    _, found, parity = exported(name, tmp_path / "model.onnx", 4, scheme="dorefa")
    assert parity.wrong is None
    assert [path for path, _, why in found.stayed_float if why == "its weight is not quantized"] == floats


def test_a_recipe_takes_them_by_name(tmp_path) -> None:
    train = Train(epochs=1, batch_size=16, lr=0.01, precision="float32")
    surgery = [PruneChannels(until={"macs": 0.8}, round_to=2), Prune(sparsity=0.4), Quantize(calibrate=16)]
    recipe = Recipe([Attach(blocks=1), train, Drop(), *surgery, train], name="toy", model="wrn_10_1")
    console = Console(quiet=True)
    result = compress_aug.run(recipe, data=tiny_data(32), out=tmp_path / "run", device="cpu", console=console)
    assert result.report["original"]["parameters"] == size_by_formula("wrn_10_1", 4)
    assert result.report["stages"][-1]["word"] == "train"
    assert result.report["stages"][-1]["sparsity"] == pytest.approx(0.4, abs=0.01)


# --- what wrong names are told


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("wrn_17_2", "depth is 17: expected 6n + 4, such as 16 or 22"),
        ("wrn_4_2", "depth is 4: expected 6n + 4, such as 10, the smallest"),
        ("wrn_16_0", "widening is 0: expected 1 or more"),
        ("preresnet_57", "depth is 57: expected 6n + 2 or (with bottlenecks) 9n + 2, such as 56 or 62"),
        ({"name": "preresnet_32", "bottleneck": True}, "depth is 32: expected 9n + 2, such as 29 or 38"),
        ({"name": "preresnet_29", "bottleneck": False}, "depth is 29: expected 6n + 2, such as 26 or 32"),
        (
            "pyramidnet_201_240",
            "depth is 201: expected 6n + 2 or (with bottlenecks) 9n + 2, such as 200 or 206",
        ),
        ("pyramidnet_200_0", "alpha is 0: expected 1 or more"),
        ("wrn-16-2", 'there is no model "wrn-16-2"; did you mean "wrn_16_2"?'),
        ("WideResNet_40_4", 'did you mean "wrn_40_4"?'),
        ("preresnet56", 'did you mean "preresnet_56"?'),
        ("wrn_016_2", 'did you mean "wrn_16_2"?'),
        ("wrn_16", "expected wrn_D_K, with its depth and widening, such as wrn_16_2"),
        ("preresnet_20_3", "expected preresnet_D, with its depth, such as preresnet_56"),
        ("pyramidnet", "expected pyramidnet_D_K, with its depth and alpha, such as pyramidnet_200_240"),
        ("alexnt", 'did you mean "alexnet"?'),
        ("resnet_18", 'did you mean "resnet18"?'),
        ("xyz", "alexnet, resnet18, wrn_D_K, preresnet_D, pyramidnet_D_K (or torchvision:NAME"),
        (
            {"name": "wrn_16_2", "depth": 22},
            'wrn_16_2 has no argument "depth"; known are: classes, in_channels',
        ),
        (
            {"name": "preresnet_20", "bottleneck": 1},
            "bottleneck of preresnet_20 is 1: expected true or false",
        ),
        ({"name": "alexnet", "image_size": 32}, 'alexnet has no argument "image_size"'),
    ],
    ids=str,
)
def test_a_wrong_net_is_told(spec: object, told: str) -> None:
    assert told in refused(spec)
