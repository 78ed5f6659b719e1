"""Fused fake quantization: bit for bit what Brevitas' own operations give, by every executor, level and way into it."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from compress_aug import models, native, quantization
from compress_aug.errors import MissingPart, QuantizeError
from compress_aug.quantization import deferred, fast_layers, fused, layers
from compress_aug.quantization.fused import Grid, fake_quantize, quantization_executor
from compress_aug.surgery import copy_model

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")

needs_kernels = pytest.mark.skipif(
    native.kernels() is None,
    reason="the kernels were not built here: no C compiler at installation, or COMPRESS_AUG_NATIVE=0",
)
EXECUTORS = ["torch", pytest.param("compiled", marks=needs_kernels)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each level that this processor can run takes the place of the best one."""
    best = native.kernels()
    if best is None or LEVELS.index(request.param) > LEVELS.index(best.level):
        pytest.skip(f"{request.param} cannot run here")
    chosen = native._load(native.LIBRARY, request.param)
    monkeypatch.setattr(fused, "kernels", lambda: chosen)
    return chosen.level


def awkward(dtype: torch.dtype, size: int = 5000) -> Tensor:
    """Values inside, outside and at the ends of grids, half-way between steps, zeros, and no numbers."""
    values = torch.randn(size) * 2
    values[:9] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40, -1e-40, 3e38, -3e38])
    values[9:600] = torch.arange(591) * 3.0 / 255 / 2 - 1
    return values.to(dtype)


def bits(values: Tensor) -> Tensor:
    """As integers, all that is no number as one: its bits may differ, and mean nothing."""
    values = torch.where(values.isnan(), torch.full_like(values, torch.nan), values.detach())
    return values.contiguous().view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32)


def same_where_numbers(one: Tensor, other: Tensor, values: Tensor) -> bool:
    """For gradients: torch's own operations do not agree on whether one passes a value that is no number."""
    return torch.equal(bits(one + 0)[~values.isnan()], bits(other + 0)[~values.isnan()])


def both_ways(
    executor: str, make: Callable[[], Any], *inputs: Tensor, above: Tensor | None = None
) -> list[Any]:
    """Output and gradients of what `make` computes from itself, by Brevitas' operations and by an executor."""
    results = []
    for name in ("stock", executor):
        made = make()
        leaves = [value.clone().requires_grad_() for value in inputs]
        with quantization_executor(name):  # type: ignore[arg-type]
            output = made(*leaves)
            output.backward(torch.ones_like(output) if above is None else above)
        results.append((output.detach(), [leaf.grad for leaf in leaves], made))
    return results


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "is_unsigned"), [(8, True), (8, False), (4, True), (2, False)])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_quantizers_equal_stock(executor: str, width: int, is_unsigned: bool, dtype: torch.dtype) -> None:
    values = awkward(dtype)
    above = torch.randn(values.shape).to(dtype)
    (stock, (stock_back,), _), (ours, (back,), _) = both_ways(
        executor, lambda: layers.quantizer(width, 3.0, is_unsigned), values, above=above
    )
    assert ours.dtype == dtype
    assert torch.equal(bits(ours + 0), bits(stock + 0))  # plain torch gives some zeros another sign
    if executor == "compiled":
        assert torch.equal(bits(ours), bits(stock))
    assert same_where_numbers(back, stock_back, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("is_unsigned", [True, False])
def test_the_gradient_of_the_scale(is_unsigned: bool, executor: str, dtype: torch.dtype) -> None:
    values, above = (torch.randn(40, 7, 9, 11).to(dtype) for _ in range(2))
    scale = torch.tensor(0.0117, requires_grad=True)
    grid = Grid(0, 255) if is_unsigned else Grid(-128, 127)
    with quantization_executor(executor):  # type: ignore[arg-type]
        fake_quantize(values, scale, grid).backward(above)
    exact = values.double() / scale.detach().double()
    steps = (values / scale.detach()).round().double()
    is_inside = (steps >= grid.smallest) & (steps <= grid.largest)
    terms = above.double() * (steps.clamp(grid.smallest, grid.largest) - torch.where(is_inside, exact, 0.0))
    # Plain torch rounds the share of a step that is left over to bfloat16, Brevitas the sums as well.
    share = 1e-6 if dtype == torch.float32 or executor == "compiled" else 2e-3
    assert scale.grad is not None
    assert abs(float(scale.grad) - float(terms.sum())) < share * float(terms.abs().sum())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_gradient_of_a_learned_scale_is_that_of_stock(executor: str) -> None:
    values = torch.randn(64, 33)
    (_, _, stock), (_, _, ours) = both_ways(
        executor, lambda: layers.quantizer(4, 3.0, False), values, above=values
    )
    (expected,), (found,) = ([p.grad for p in made.parameters()] for made in (stock, ours))
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_rectifying_within_equals_rectifying_before(
    executor: str, make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    values = awkward(dtype) * 3
    high = 6.0 if make is nn.ReLU6 else torch.inf
    scale, above = torch.tensor(0.021), torch.randn(values.shape).to(dtype)
    results = []
    for rectify, grid in ((make(), Grid(0, 255)), (nn.Identity(), Grid(0, 255, 0.0, high))):
        leaf, size = values.clone().requires_grad_(), scale.clone().requires_grad_()
        with quantization_executor(executor):  # type: ignore[arg-type]
            output = fake_quantize(rectify(leaf), size, grid)
            output.backward(above)
        results.append((output, leaf.grad))
    (before, before_back), (within, back) = results
    assert back is not None and before_back is not None
    assert torch.equal(bits(within + 0), bits(before + 0))
    assert same_where_numbers(back, before_back, values)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_memory_formats_are_kept_and_gaps_are_not(executor: str) -> None:
    values = torch.randn(4, 6, 5, 7)
    quantizer = layers.quantizer(8, 3.0, False)
    forms = {
        "channels last": values.contiguous(memory_format=torch.channels_last),
        "permuted": values.permute(2, 0, 3, 1),
        "part": values[:, 1:4],
        "strided": values[..., ::2],
        "expanded": values[:1].expand(4, 6, 5, 7),
    }
    for name, form in forms.items():
        with quantization_executor("stock"):
            expected = quantizer(form)
        with quantization_executor(executor):  # type: ignore[arg-type]
            leaf = form.detach().requires_grad_()
            found = quantizer(leaf)
            assert torch.equal(found, expected), name
            assert found.stride() == expected.stride(), name
            # A gradient laid out otherwise, as after a pooling.
            (back,) = torch.autograd.grad(found, leaf, torch.ones(()).expand(found.shape))
            assert torch.equal(back != 0, (form.abs() < 3.0 * 127.5 / 128)), name


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("scales", ["channel", "tensor"])
@pytest.mark.parametrize("width", [8, 4, 2])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_weights_equal_stock(executor: str, width: int, scales: str) -> None:
    layer = nn.Conv2d(6, 5, 3)
    prune.l1_unstructured(layer, "weight", 0.4)  # type: ignore[no-untyped-call]
    layer.to(memory_format=torch.channels_last)
    images, above = torch.randn(2, 6, 8, 8), torch.randn(2, 5, 6, 6)

    def make() -> nn.Module:
        return layers.quantized_layer(copy_model(layer), width, scales=scales)

    (stock, (stock_back,), one), (ours, (back,), other) = both_ways(executor, make, images, above=above)
    assert torch.equal(ours, stock) and torch.equal(back, stock_back)
    expected, found = one.weight_orig.grad, other.weight_orig.grad
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    with quantization_executor(executor):  # type: ignore[arg-type]
        weight = fast_layers.quantized_weight(other)
        assert weight is not None
        assert (weight[other.weight_mask == 0] == 0).all()
        assert torch.equal(weight, other.quant_weight().value)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_weights_whose_first_axis_does_not_lead_in_memory(executor: str) -> None:
    """As after `nn.Parameter(matrix.t())`: the scale of a row belongs to values that lie apart."""
    images = torch.randn(3, 6)

    def make() -> nn.Module:
        layer = nn.Linear(6, 5)
        layer.weight = nn.Parameter((torch.arange(30.0).view(6, 5) - 12).t())
        nn.init.zeros_(layer.bias)
        return layers.quantized_layer(layer, 4)

    (stock, (stock_back,), one), (ours, (back,), other) = both_ways(executor, make, images)
    assert one.weight.stride() == (1, 5)
    assert torch.equal(ours, stock) and torch.equal(back, stock_back)
    assert (other.weight.grad - one.weight.grad).abs().max() <= 1e-6 * one.weight.grad.abs().max()


# ---------------------------------------------------------------- the kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("high", [None, 6.0])
def test_every_level_gives_the_same_bits(high: float | None, dtype: torch.dtype, level: str) -> None:
    values, above = awkward(dtype), torch.randn(5000).to(dtype)
    grid = Grid(0, 255) if high is None else Grid(0, 255, 0.0, high)
    scale = torch.tensor(0.0117)
    found = native._load(native.LIBRARY, level)
    expected = native._load(native.LIBRARY, "baseline")
    for one, other in zip(
        (fused._by_kernel(values, scale, grid, found), *_gradient(values, above, scale, grid, found)),
        (fused._by_kernel(values, scale, grid, expected), *_gradient(values, above, scale, grid, expected)),
        strict=True,
    ):
        assert torch.equal(bits(one), bits(other))
    stock = layers.quantizer(8, 3.0, True)
    with quantization_executor("stock"):
        assert torch.equal(
            bits(stock(values)), bits(fake_quantize(values, layers.activation_scale(stock), Grid(0, 255)))
        )


def _gradient(*arguments: Any) -> tuple[Tensor, Tensor]:
    return fused._gradient_by_kernel(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-12, 2.0**-30, 0.0117, 0.3, 1.0, 777.7, 1e6, torch.inf, torch.nan])
def test_every_level_gives_the_same_bits_at_any_size(scale: float, dtype: torch.dtype, level: str) -> None:
    """Where numbers overflow or are too small to be normal, the ways of the levels part."""
    values = torch.cat(
        [awkward(dtype), (torch.randn(5000) * 10.0 ** torch.randint(-40, 38, (5000,))).to(dtype)]
    )
    above = values[torch.randperm(len(values))]
    above[4096:] = torch.randn(len(above) - 4096).to(dtype)  # blocks of usual sizes beside those of all sizes
    step = torch.tensor(scale)
    for grid in (Grid(-8, 7), Grid(0, 255), Grid(0, 15, 0.0, torch.inf), Grid(-8, 7, -1.5, 1.25)):
        results = [
            (
                fused._by_kernel(values, step, grid, found),
                fused._gradient_by_kernel(values, above, step, grid, found)[0],
            )
            for found in (native._load(native.LIBRARY, level), native._load(native.LIBRARY, "baseline"))
        ]
        for one, other in zip(*results, strict=True):
            is_number = ~other.isnan()
            assert torch.equal(one.isnan(), other.isnan())
            assert torch.equal(bits(one[is_number]), bits(other[is_number]))


@needs_kernels
@pytest.mark.parametrize("has_team", [True, False], ids=["threads of torch", "own threads"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(
    dtype: torch.dtype, has_team: bool, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = native.kernels()
    assert found is not None
    if has_team and not found.has_team:
        pytest.skip("torch shows no OpenMP threads here")
    monkeypatch.setattr(fused, "kernels", lambda: replace(found, has_team=has_team))
    values, above = (torch.randn(300_001).to(dtype) for _ in range(2))
    results = []
    for number in (1, 2, 3):
        threads(number)
        leaf, scale = values.clone().requires_grad_(), torch.tensor(0.02, requires_grad=True)
        output = fake_quantize(leaf, scale, Grid(-8, 7))
        output.backward(above)
        results.append((output, leaf.grad, scale.grad))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@needs_kernels
def test_the_number_of_threads_changes_nothing_for_many_scales(threads: Callable[[int], None]) -> None:
    weights, above = torch.randn(37, 9001), torch.randn(37, 9001)
    results = []
    for number in (1, 2, 5):
        threads(number)
        leaf, scales = weights.clone().requires_grad_(), torch.linspace(0.1, 1, 37)[:, None].requires_grad_()
        output = fake_quantize(leaf, scales, Grid(-8, 7, passes=True))
        output.backward(above)
        results.append((output, leaf.grad, scales.grad))
    with quantization_executor("torch"):
        expected = fake_quantize(weights, torch.linspace(0.1, 1, 37)[:, None], Grid(-8, 7, passes=True))
    assert torch.equal(results[0][0], expected)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 31, 32, 2047, 2048, 2049])
def test_nothing_is_written_outside(count: int, dtype: torch.dtype) -> None:
    found = native.kernels()
    assert found is not None
    values, room = torch.randn(count).to(dtype), torch.full((count + 64,), 77.0).to(dtype)
    scale, inner = torch.tensor([0.1]), 32 * values.element_size()
    ends = (-8.0, 7.0, 0.0, 6.0, True)
    is_half = dtype is torch.bfloat16
    found.fake_quant(
        values.data_ptr(), room.data_ptr() + inner, 1, count, scale.data_ptr(), *ends, is_half, 2
    )
    assert (room[:32] == 77).all() and (room[32 + count :] == 77).all()
    sums = torch.full((-(-count // 2048) + 1,), 55.0, dtype=torch.float64)
    found.fake_quant_gradient(
        *(values.data_ptr(), values.data_ptr(), room.data_ptr() + inner, sums.data_ptr(), 1, count),
        *(scale.data_ptr(), *ends, False, is_half, 2),
    )
    assert (room[:32] == 77).all() and (room[32 + count :] == 77).all()
    assert sums[-1] == 55 and (sums[:-1] != 55).all()


def test_blocks_are_as_long_in_both_languages() -> None:
    source = Path(native.__file__).with_name("fake_quant.c").read_text()
    assert f"BLOCK = {fused._BLOCK}," in source


# ---------------------------------------------------------------- models


def quantized_model(make: Callable[[], nn.Module], **options: Any) -> tuple[nn.Module, Tensor]:
    batch = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    made = quantization.quantize(make(), batch[:1], calibration=[batch], **options)
    return made.to(memory_format=torch.channels_last).train(), batch


class Functional(nn.Module):
    """Rectifies by functions, last of all what it puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = functional.relu6(self.conv(images)).mean((2, 3))
        return functional.relu(self.fc(values))


NETS = [
    pytest.param(lambda: models.resnet8(4, width=4), id="resnet8"),
    pytest.param(Functional, id="functional"),
    pytest.param(lambda: models.mobilenet_v2(4, width=0.25), id="mobilenet_v2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_model_computes_what_stock_operations_do(
    executor: str, make: Callable[[], nn.Module], is_autocast: bool
) -> None:
    made, batch = quantized_model(make)
    results = []
    for name in ("stock", executor):
        made.zero_grad()
        torch.manual_seed(0)  # for dropout
        with (
            quantization_executor(name),  # type: ignore[arg-type]
            torch.autocast("cpu", torch.bfloat16, is_autocast),
        ):
            logits = made(batch)
        functional.cross_entropy(logits.float(), torch.arange(4)).backward()
        results.append((logits, {key: value.grad for key, value in made.named_parameters()}))
    (expected, expected_grads), (found, grads) = results
    assert torch.equal(found, expected)
    for key, value in grads.items():
        assert value is not None, key
        if "scaling_impl" not in key:
            size = expected_grads[key].abs().max()
            assert (value - expected_grads[key]).abs().max() <= 1e-5 * size + 1e-12, key


def test_the_stages_of_a_model_stay_what_they_were() -> None:
    made, batch = quantized_model(lambda: models.resnet8(4, width=4), weights=4, activations=4)
    expected = made.eval()(batch)
    copied = deepcopy(made)
    assert torch.equal(copied(batch), expected)
    assert quantization.weight_bits(made)["layer1.0.conv1"] == 4
    twin = quantization.without_quantizers(made)
    with quantization_executor("stock"):
        assert torch.equal(twin(batch), quantization.without_quantizers(made)(batch))
    assert torch.equal(twin(batch), deepcopy(twin).train()(batch))


def test_unusual_quantizers_take_the_stock_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the short way was taken")

    values = torch.randn(3, 5)
    expected = layers.quantizer(8, 3.0, False)(values)
    monkeypatch.setattr(fast_layers, "fake_quantize", refuse)
    with pytest.raises(AssertionError, match="short way"):
        layers.quantizer(8, 3.0, False)(values)

    disabled, watched, wide, returning, observing = (layers.quantizer(8, 3.0, False) for _ in range(5))
    disabled.act_quant.disable_quant = True
    assert torch.equal(disabled(values), values)
    seen = []
    watched.act_quant.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(watched(values), expected) and seen
    assert wide(values.double()).dtype == torch.float64
    returning.return_quant_tensor = True
    assert torch.equal(returning(values).value, expected)
    observing.act_quant.fused_activation_quant_proxy.tensor_quant.observer_only = True
    assert torch.equal(observing(values), values)
    assert layers.quantizer(8, 3.0, False)(torch.zeros(0, 5)).shape == (0, 5)
    layer = layers.dorefa_layer(nn.Conv2d(3, 4, 3), 4, False)
    assert layer(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)
    assert fast_layers.quantized_weight(layer) is None


def test_bits_that_are_changed_are_noticed() -> None:
    values, quantizer = torch.randn(100), layers.quantizer(8, 3.0, False)
    quantizer(values)
    quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.msb_clamp_bit_width_impl.bit_width.value.fill_(
        3
    )
    found = quantizer(values)
    with quantization_executor("stock"):
        assert torch.equal(found, quantizer(values))
    assert len(found.unique()) <= 8


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_model_of_bfloat16_parameters(executor: str) -> None:
    made, batch = quantized_model(lambda: models.resnet8(4, width=4), weights=4, activations=4)
    made, batch = made.to(torch.bfloat16).eval(), batch.to(torch.bfloat16)
    found = {}
    for name in ("stock", executor):
        with quantization_executor(name):  # type: ignore[arg-type]
            found[name] = made(batch)
            back = torch.autograd.grad(found[name].sum(), made.get_submodule("conv1").weight)[0]
            assert back.abs().sum() > 0
    assert torch.equal(found[executor], found["stock"])


def test_what_is_kept_of_bits_serves_training_and_inference_mode_alike() -> None:
    made, batch = quantized_model(Functional)
    with torch.inference_mode():
        expected = made(batch)
        assert torch.equal(deepcopy(made)(batch), expected)
    found = made(batch)
    found.sum().backward()
    assert torch.equal(found, expected)


# ---------------------------------------------------------------- a ReLU that the quantizer carries out


def test_rectifiers_that_a_quantizer_alone_reads_are_left_to_it() -> None:
    made, _ = quantized_model(lambda: models.resnet8(4, width=4))
    kinds = {name: type(made.get_submodule(name)) for name in ("relu", "layer1.0.relu", "layer3.0.relu")}
    assert set(kinds.values()) == {deferred.ReLU}
    made, batch = quantized_model(Functional)
    targets = {node.target for node in made.graph.nodes}
    # What the network puts out is rectified by nobody else.
    assert {deferred.relu6, functional.relu} <= targets
    assert made(batch).shape == (4, 5) and type(made(batch)) is Tensor


def test_a_hook_on_a_rectifier_sees_it_rectified() -> None:
    made, batch = quantized_model(lambda: models.resnet8(4, width=4))
    expected = made(batch)
    seen = []
    handle = made.get_submodule("relu").register_forward_hook(lambda *given: seen.append(given[2]))
    assert torch.equal(made(batch), expected)
    handle.remove()
    assert type(seen[0]) is Tensor and seen[0].min() >= 0


def _relu_of(model: nn.Module) -> nn.Module:
    return model.get_submodule("relu")


def _quantizer_of(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if type(module) is fast_layers.QuantIdentity)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("whose", [_relu_of, _quantizer_of, None])
@pytest.mark.parametrize("make", [lambda: models.resnet8(4, width=4), Functional])
def test_hooks_on_the_backward_pass_find_plain_tensors(
    make: Callable[[], nn.Module], whose: Callable[[nn.Module], nn.Module] | None
) -> None:
    made, batch = quantized_model(make)
    expected, seen = made(batch), []
    if whose is None:
        handle = nn.modules.module.register_module_full_backward_hook(lambda *given: seen.append(given))
    elif make is Functional and whose is _relu_of:
        pytest.skip("it rectifies by functions")
    else:
        # That of the last of them: what the network reads has no gradient.
        kinds = [module for module in made.modules() if type(module) is type(whose(made))]
        handle = kinds[-1].register_full_backward_hook(lambda *given: seen.append(given))
    try:
        found = made(batch)
        found.sum().backward()
    finally:
        handle.remove()
    assert torch.equal(found, expected)
    assert seen and all(type(gradient) is Tensor for gradient in seen[0][2])


def test_a_hook_before_a_quantizer_sees_a_plain_tensor() -> None:
    made, batch = quantized_model(Functional)
    expected, seen = made(batch), []
    for module in made.modules():
        if type(module) is fast_layers.QuantIdentity:
            module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    assert torch.equal(made(batch), expected)
    assert {type(value) for value in seen} == {Tensor}
    assert min(float(value.detach().min()) for value in seen[1:]) == 0


@pytest.mark.parametrize(("rectify", "high"), [(deferred.relu, torch.inf), (deferred.relu6, 6.0)])
def test_whoever_reads_a_deferred_value_finds_it_rectified(
    rectify: Callable[[Tensor], Tensor], high: float
) -> None:
    raw = (torch.randn(2, 3, 4, 4) * 5).requires_grad_()
    expected = raw.clamp(0, high)
    for read in (
        lambda value: value + 1,
        lambda value: 2 - value,
        lambda value: torch.cat([value, value]),
        lambda value: value.sum(1),
        lambda value: value.detach(),
        lambda value: functional.conv2d(value, torch.ones(1, 3, 1, 1)),
        nn.Identity(),
    ):
        found = read(rectify(raw))
        found = found.clone() if type(found) is deferred.Deferred else found
        assert type(found) is Tensor
        assert torch.equal(found, read(expected))
    (back,) = torch.autograd.grad(rectify(raw).sum(), raw)
    assert torch.equal(back, ((raw > 0) & (raw < high)).float())


# ---------------------------------------------------------------- which executor


def test_wrong_executors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuantizeError, match="auto, stock, torch, compiled, found 'fast'"):
        quantization_executor("fast").__enter__()  # type: ignore[arg-type]
    monkeypatch.setattr(fused, "kernels", lambda: None)
    with pytest.raises(MissingPart, match="C compiler"):
        quantization_executor("compiled").__enter__()


def test_the_executor_is_the_former_one_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with quantization_executor("torch"):
        with pytest.raises(ZeroDivisionError), quantization_executor("stock"):
            raise ZeroDivisionError
        assert fused._executor == "torch"
    assert fused._executor == "auto"
    monkeypatch.setattr(fused, "kernels", lambda: None)
    assert float(fake_quantize(torch.ones(1), torch.tensor(0.4), Grid(0, 3))) == pytest.approx(0.8)
