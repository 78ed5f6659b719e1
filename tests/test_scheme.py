"""The options of quantize: bits by pattern, ranges and scales, batch norms kept and measured anew, wrong choices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import TinyConcat, TinyResidual, tiny_net

from compress_aug import checkpoint, deploy, models, quantization
from compress_aug.errors import QuantizeError, RecipeError
from compress_aug.measure import effective_weight
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import layers
from compress_aug.quantization.calibrate import Magnitudes, weight_ends
from compress_aug.quantization.folding import foldable_norms
from compress_aug.quantization.frozen import to_freeze
from compress_aug.quantization.norms import reestimate_batch_norms
from compress_aug.stages import Prune, Quantize
from compress_aug.stages.base import Outlook
from compress_aug.surgery import copy_model, make_permanent, masked_layers, surgery_log


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(number: int = 8, *, size: int = 8) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def with_statistics(model: nn.Module, batch: Tensor) -> nn.Module:
    """The model in eval mode, its batch norms no longer the identity, some of their weights negative."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.7, 0.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    with torch.no_grad():
        for _ in range(3):
            model(batch)
    return model.eval()


def quantized(model: nn.Module, **options: Any) -> nn.Module:
    return quantization.quantize(model, images()[:1], **{"calibration": [images()], **options})


def train_steps(model: nn.Module, steps: int = 3, lr: float = 0.01) -> nn.Module:
    model.train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(images()), torch.arange(8) % 4).backward()
        optimizer.step()
    return model.eval()


def quantizers(model: nn.Module) -> dict[str, nn.Module]:
    found = {name: module for name, module in model.named_modules() if hasattr(module, "act_quant")}
    return {name.rsplit(".", 1)[1]: module for name, module in found.items()}


def activation_bits(model: nn.Module) -> dict[str, int]:
    return {name: int(module.act_quant.bit_width()) for name, module in quantizers(model).items()}


def rebuilt(model: nn.Module, base: Callable[[], nn.Module], folder: Path) -> nn.Module:
    checkpoint.save(model, folder / "model.safetensors")
    return checkpoint.rebuild(base(), folder / "model.safetensors").eval()


# ------------------------------------------------------------------- bits by pattern


def test_overrides_name_layers_by_name_glob_and_type_and_later_ones_win() -> None:
    overrides = {"Conv2d": {"weights": 3}, "*join*": {"weights": 5}, "pointwise": {"weights": "float"}}
    made = quantized(TinyConcat(), weights=4, overrides=overrides)
    assert quantization.weight_bits(made) == {
        "stem.0": 3,  # over first_and_last
        "depthwise.0": 3,
        "pointwise.0": 32,
        "join.0": 5,
        "fc": 8,
    }


def test_overridden_activations_are_those_that_the_layer_reads() -> None:
    made = quantized(TinyResidual(), activations=4, overrides={"conv": {"activations": 6}})
    assert activation_bits(made) == {
        "images": 8,
        "relu": 6,
        "conv": 4,
        "relu_1": 4,
        "adaptive_avg_pool2d": 8,
    }
    # The same value is read by two layers: the last pattern that names either decides.
    both = {"depthwise": {"activations": 6}, "join": {"activations": 3}}
    made = quantized(TinyConcat(), activations=4, overrides=both)
    assert activation_bits(made)["stem_2"] == 3


def test_overrides_alone_quantize_only_what_they_name(tmp_path: Path) -> None:
    one = {"conv": {"weights": 4, "activations": 4}}
    made = quantized(TinyResidual(), weights=None, activations=None, overrides=one)
    assert quantization.weight_bits(made) == {"stem": 32, "conv": 4, "fc": 32}
    assert activation_bits(made) == {"relu": 4}
    assert surgery_log(made)[-1]["overrides"] == one
    assert torch.equal(rebuilt(made, TinyResidual, tmp_path)(images()), made.eval()(images()))


def test_overrides_bring_the_ends_back_and_take_activations_away() -> None:
    made = quantized(
        TinyResidual(), first_and_last="float", overrides={"fc": {"weights": 8, "activations": 8}}
    )
    assert quantization.weight_bits(made) == {"stem": 32, "conv": 8, "fc": 8}
    assert "adaptive_avg_pool2d" in quantizers(made)
    made = quantized(TinyResidual(), overrides={"conv": {"activations": None}})
    assert "relu" not in quantizers(made)


# ------------------------------------------------------------------- ranges and scales


@pytest.mark.parametrize(("how", "percentile"), [("max", 100.0), ("percentile", 90.0), ("percentile", 99.9)])
def test_ends_of_activations_equal_those_of_the_sorted_values(how: str, percentile: float) -> None:
    values = torch.randn(20000).relu()
    seen = Magnitudes()
    for part in values.split(3000):
        seen.add(part)
    expected = torch.quantile(values[values > 0], percentile / 100)
    assert seen.end(how, 8, True, percentile) == pytest.approx(float(expected), rel=1e-2)
    assert Magnitudes().end(how, 8, True, percentile) == 1.0


def test_ends_of_weights_by_percentile_and_by_least_error() -> None:
    rows = torch.randn(3, 500)
    rows[0, :400] = 0
    rows[2] = 0
    expected = [torch.quantile(row[row != 0].abs(), 0.9) for row in rows[:2]]
    assert torch.allclose(
        weight_ends(rows, 4, "percentile", 90.0), torch.stack([*expected, torch.tensor(1.0)])
    )

    def error(end: Tensor) -> Tensor:
        step = end / 3
        return ((rows[1] / step).round().clamp(-3, 3) * step - rows[1]).square().sum()

    found = weight_ends(rows, 3, "mse")[1]
    best = min(error(share * rows[1].abs().max()) for share in torch.linspace(0.05, 1, 400))
    assert error(found) < 1.01 * best
    assert error(found) < 0.8 * error(rows[1].abs().max())


@pytest.mark.parametrize("scales", ["channel", "tensor"])
@pytest.mark.parametrize("how", ["auto", "max", "percentile", "mse"])
@pytest.mark.parametrize("learned", [True, False])
def test_each_range_trains_and_comes_back(scales: str, how: str, learned: bool, tmp_path: Path) -> None:
    options = {"weight_scales": scales, "weight_range": how, "learned_scales": learned, "percentile": 95.0}
    made = quantized(with_statistics(TinyResidual(), images()), weights=4, **options)
    conv = made.get_submodule("conv")
    before = layers.weight_scales(conv, effective_weight(conv))
    assert len(before) == (8 if scales == "channel" else 1)
    ends = {name: float(layers.activation_scale(module)) for name, module in quantizers(made).items()}
    train_steps(made, lr=0.05)
    moved = layers.weight_scales(conv, effective_weight(conv))
    assert torch.equal(moved, before) is not learned
    after = {name: float(layers.activation_scale(module)) for name, module in quantizers(made).items()}
    assert (after == ends) is not learned
    fresh = rebuilt(made, TinyResidual, tmp_path)
    assert torch.equal(fresh(images()), made(images()))
    trained = {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in made.named_parameters() if parameter.requires_grad}


def test_ranges_begin_where_they_were_measured() -> None:
    net = with_statistics(tiny_net(), images())
    folded = quantization.without_quantizers(quantized(copy_model(net)))
    rows = folded.get_submodule("3").weight.detach().flatten(1)
    for options, expected in (
        ({"weight_range": "max", "weights": 3}, rows.abs().amax(1) / 3),
        ({"weight_range": "mse", "weights": 3}, weight_ends(rows, 3, "mse") / 3),
        ({"weight_range": "percentile", "percentile": 90.0}, weight_ends(rows, 8, "percentile", 90.0) / 127),
        ({"weight_range": "max", "weight_scales": "tensor"}, rows.abs().max().view(1) / 127),
    ):
        layer = quantized(copy_model(net), **options).get_submodule("3")
        assert torch.allclose(layers.weight_scales(layer, effective_weight(layer)), expected, rtol=1e-5), (
            options
        )
    by_max, by_percentile = (
        quantized(copy_model(net), activation_range=how, percentile=80.0) for how in ("max", "percentile")
    )
    for name, module in quantizers(by_max).items():
        assert layers.activation_scale(quantizers(by_percentile)[name]) < 0.8 * layers.activation_scale(
            module
        )


@pytest.mark.parametrize("learned", [True, False])
def test_folding_masks_in_keeps_measured_ranges(learned: bool, tmp_path: Path) -> None:
    net = mask_smallest(with_statistics(TinyResidual(), images()), 0.5)
    made = quantized(net, weights=3, weight_range="mse", learned_scales=learned)
    fresh = rebuilt(made, TinyResidual, tmp_path)
    expected = made.eval()(images())
    assert masked_layers(fresh)
    final = make_permanent(copy_model(fresh))
    assert torch.equal(final(images()), expected)
    # The copy shares nothing with the model that it was made from.
    final.get_submodule("conv").weight_quant.requires_grad_(False)
    for buffer in final.buffers():
        buffer.mul_(2)
    assert torch.equal(fresh(images()), expected)


@pytest.mark.parametrize("is_unsigned", [True, False])
def test_gradient_of_a_learned_scale_equals_finite_differences(is_unsigned: bool) -> None:
    """With the rounding held where it is, the output is scale x integer, a smooth map of the scale's logarithm."""
    made = layers.quantizer(3, 2.0, is_unsigned).double()
    values = torch.linspace(-3, 3, 61, dtype=torch.float64)
    [logarithm] = made.parameters()
    weights = torch.randn(61, dtype=torch.float64)
    (made(values) * weights).sum().backward()
    scale = layers.activation_scale(made)
    low, high = (0, 7) if is_unsigned else (-4, 3)
    integers = (values / scale).round()
    # Rounding adds what it added at this scale, wherever the scale goes: the un-rounded map.
    offsets = integers - values / scale

    def unrounded(shift: float) -> float:
        moved = scale * 2.0**shift
        inside = (integers >= low) & (integers <= high)
        steps = torch.where(inside, values / moved + offsets, integers.clamp(low, high))
        return float((steps * moved * weights).sum())

    step = 1e-6
    expected = (unrounded(step) - unrounded(-step)) / (2 * step)
    assert float(logarithm.grad) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------- batch norms kept


def kept(model: nn.Module, **options: Any) -> nn.Module:
    return quantized(with_statistics(model, images()), batch_norm="keep", **options)


def test_kept_norms_stay_modules_with_their_names_and_a_float_state_dict_loads() -> None:
    net = with_statistics(TinyResidual(), images())
    state = {name: value.clone() for name, value in net.state_dict().items()}
    made = quantized(net, batch_norm="keep")
    assert isinstance(made.get_submodule("conv_norm"), nn.BatchNorm2d)
    assert torch.equal(made.state_dict()["conv.weight"], state["conv.weight"])
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert unexpected == [] and all("quant" in name for name in missing)
    # One quantizer behind each norm, none between a layer and its norm.
    assert sorted(quantizers(made)) == ["adaptive_avg_pool2d", "conv_norm", "images", "relu", "relu_1"]


@pytest.mark.parametrize("scales", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [8, 3])
def test_finalize_folds_kept_norms_exactly(bits: int, scales: str) -> None:
    made = train_steps(kept(TinyResidual(), weights=bits, activations=bits, weight_scales=scales))
    norms = {layer: made.get_submodule(norm) for norm, layer in foldable_norms(made).items()}
    assert sorted(norms) == ["conv", "stem"]
    assert any(bool((norm.weight < 0).any()) for norm in norms.values())
    before = {name: copy_model(made.get_submodule(name)) for name in norms}
    values = {name: torch.randn(4, before[name].in_channels, 8, 8, dtype=torch.float64) for name in norms}
    frozen = to_freeze(made)
    final = quantization.finalize(copy_model(made))
    for name, norm in norms.items():
        was, now = before[name], final.get_submodule(name)
        scale = layers.weight_scales(was, effective_weight(was)).double()
        codes = (was.quant_weight().value.double() / was.quant_weight().scale.double()).round()
        # The very integers, but for their sign, and the scale |scale * gamma / sigma|.
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shape = (-1, 1, 1, 1)
        assert torch.equal(now.quant_weight().int().double(), codes * factor.sign().view(shape))
        found = layers.weight_scales(now, effective_weight(now)).double()
        assert torch.allclose(found, (scale * factor.abs()).expand_as(found), rtol=1e-6)
        assert torch.equal(now.quant_weight().value, now.weight)
        # Before the bias is rounded, layer and norm compute the same.
        expected = copy_model(norm).double()(
            functional.conv2d(values[name], was.quant_weight().value.double(), padding=1)
        )
        given = functional.conv2d(values[name], now.weight.double(), frozen[name].bias.double(), padding=1)
        assert torch.allclose(given, expected, atol=1e-5 * float(expected.detach().abs().max()))
        assert not isinstance(
            final.get_submodule({"stem": "norm", "conv": "conv_norm"}[name]), nn.BatchNorm2d
        )
    assert quantization.weight_bits(final) == quantization.weight_bits(made)


def test_finalize_of_kept_norms_is_idempotent_and_comes_back_and_leaves_its_original(tmp_path: Path) -> None:
    made = train_steps(kept(TinyResidual(), weights=4, activations=4))
    expected = made(images())
    final = quantization.finalize(copy_model(made))
    state = {name: value.clone() for name, value in final.state_dict().items()}
    log = surgery_log(final)
    quantization.finalize(final)
    assert surgery_log(final) == log and [entry["verb"] for entry in log] == ["quantize", "finalize"]
    assert all(torch.equal(value, state[name]) for name, value in final.state_dict().items())
    assert torch.equal(rebuilt(final, TinyResidual, tmp_path)(images()), final(images()))
    assert torch.equal(copy_model(final)(images()), final(images()))
    assert torch.equal(made(images()), expected) and isinstance(made.get_submodule("norm"), nn.BatchNorm2d)
    # Training goes on with the model, and the copy can be made again.
    train_steps(made)
    assert not torch.equal(quantization.finalize(copy_model(made))(images()), final(images()))


def test_masks_survive_the_exact_fold(tmp_path: Path) -> None:
    net = mask_smallest(with_statistics(TinyResidual(), images()), 0.5)
    made = quantized(net, batch_norm="keep", weights=4)
    final = quantization.finalize(copy_model(made)).eval()
    for name, layer in masked_layers(final).items():
        assert not layer.quant_weight().int()[layer.weight_mask == 0].any(), name
    assert torch.equal(rebuilt(final, TinyResidual, tmp_path)(images()), final(images()))


def test_norm_that_multiplies_by_nothing_still_folds() -> None:
    made = kept(TinyResidual())
    with torch.no_grad():
        made.get_submodule("norm").weight[:3] = torch.tensor([0.0, 1e-12, 1e-30])
        made.get_submodule("norm").bias[:3] = 5.0
    expected = made.eval()(images())
    final = quantization.finalize(made)
    assert torch.isfinite(final(images())).all()
    assert bool((final(images()) - expected).abs().max() < 0.05 * expected.abs().max())


def test_file_of_a_net_with_kept_norms_computes_what_it_does(tmp_path: Path) -> None:
    batch = images(size=32)
    net = with_statistics(models.resnet8(4, width=4), batch)
    made = quantization.quantize(net, batch[:1], batch_norm="keep", calibration=[batch])
    final = quantization.finalize(made).eval()
    deploy.write(final, tmp_path / "a.onnx", image_shape=(3, 32, 32))
    parity = deploy.check_parity(final, tmp_path / "a.onnx", [(batch, torch.zeros(8).long())])
    assert parity.disagreements == 0
    assert deploy.audit(tmp_path / "a.onnx").float_layers == 0


# ------------------------------------------------------------------- batch-norm statistics


def test_statistics_are_the_means_over_all_images_and_nothing_else_changes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    net[0].eval()
    batches = [images(5), 2 * images(3)]
    state, before = torch.get_rng_state(), net[2].weight.clone()
    modes = [module.training for module in net.modules()]
    assert reestimate_batch_norms(net, iter(batches)) is net
    outputs = [net[0](batch) for batch in batches]
    mean = sum(len(out) * out.mean((0, 2, 3)) for out in outputs) / 8
    variance = sum(len(out) * out.var((0, 2, 3)) for out in outputs) / 8
    assert torch.allclose(net[2].running_mean, mean, atol=1e-6)
    assert torch.allclose(net[2].running_var, variance, atol=1e-6)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(net[2].weight, before)
    assert [module.training for module in net.modules()] == modes
    assert net[2].momentum == 0.1 and all(parameter.grad is None for parameter in net.parameters())


def test_norm_called_twice_counts_both_calls() -> None:
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, nn.Hardtanh(), norm)
    reestimate_batch_norms(net, [images() + 2])
    first = images() + 2
    normed = functional.batch_norm(first, None, None, norm.weight, norm.bias, training=True)
    mean = (first.mean((0, 2, 3)) + functional.hardtanh(normed).mean((0, 2, 3))) / 2
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "no batch to measure"),
        ([torch.zeros(1, 3, 1, 1)], r"Batch 1 \[1, 3, 1, 1\] leaves one value per channel"),
        ([torch.full((2, 3, 4, 4), torch.nan)], 'batch norm "0" are not finite'),
    ],
)
def test_batches_that_give_no_statistics_are_refused_and_change_nothing(
    batches: list[Tensor], sentence: str
) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    net(images())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(QuantizeError, match=sentence):
        reestimate_batch_norms(net, batches)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert reestimate_batch_norms(nn.Sequential(nn.Linear(2, 2)), []) is not None


def test_quantize_measures_kept_norms_on_the_quantized_model() -> None:
    made = kept(TinyResidual(), weights=2, activations=2)
    again = reestimate_batch_norms(copy_model(made), [images()])
    for name, value in made.state_dict().items():
        assert torch.allclose(value.float(), again.state_dict()[name].float(), atol=1e-5), name


# ------------------------------------------------------------------- wrong choices


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheme": "dorfea"}, r"scheme must be integer or dorefa, found 'dorfea': did you mean \"dorefa\""),
        ({"weight_range": "mes"}, r"weight_range must be auto or max or percentile or mse, found 'mes'"),
        ({"percentile": 40}, "percentile must lie above 50 and at most at 100, found 40"),
        ({"signed": 8}, 'signed belongs to scheme "dorefa"'),
        ({"rescale": True}, 'rescale belongs to scheme "dorefa"'),
        ({"learned_scales": 1}, "learned_scales must be true or false, found 1"),
        ({"overrides": {"conf": {"weights": 4}}}, r'overrides: "conf" matches no .*; did you mean "conv"'),
        ({"overrides": {"conv": {"weights": 9}}}, r'overrides: weights of "conv" must be 2 to 8 bits'),
        ({"overrides": {"conv": 4}}, r'overrides: "conv" must map to .*, found 4'),
        ({"overrides": {"conv": {"weight": 4}}}, r"overrides: \"conv\" must map to"),
        ({"overrides": {"conv": {}}}, r"overrides: \"conv\" must map to"),
        ({"overrides": ["conv"]}, r"overrides must be like"),
        ({"batch_norm": "keep", "calibration": []}, "calibration holds no batch"),
    ],
)
def test_wrong_options_are_refused_and_the_model_stays_as_it_was(
    options: dict[str, Any], sentence: str
) -> None:
    net = with_statistics(TinyResidual(), images())
    expected = net(images())
    with pytest.raises(QuantizeError, match=sentence):
        quantized(net, **options)
    assert torch.equal(net(images()), expected) and surgery_log(net) == []


def test_a_log_from_before_these_options_replays() -> None:
    made = quantized(TinyResidual(), weights=4)
    entry = surgery_log(made)[-1]
    old = {
        name: entry[name]
        for name in ("verb", "weights", "activations", "first_and_last", "example", "layers")
    }
    fresh = quantization.replay(TinyResidual(), {**old, "float_norms": []})
    fresh.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images()), made.eval()(images()))


# ------------------------------------------------------------------- the stage


def test_stage_takes_every_option_and_says_what_cannot_be() -> None:
    stage = Quantize(weights=4, overrides={"layer1.*": {"weights": 8, "activations": "float"}})
    assert stage.first_and_last == 8 and stage.batch_norm == "fold"
    assert stage.foresee(Outlook()).weight_bits == 4
    dorefa = Quantize(scheme="dorefa", weights=2, activations=2)
    assert (dorefa.first_and_last, dorefa.batch_norm, dorefa.signed) == ("float", "keep", 8)
    assert dorefa.title() == "quantize dorefa w2 a2"
    for options, sentence in (
        ({"scheme": "dorefa"}, "needs weights and activations, 2..7 bits each"),
        ({"scheme": "dorefa", "weights": 8, "activations": 4}, "DoReFa takes 2 to 7 bits, found 8"),
        ({"overrides": {}}, "names no layer: leave it out"),
        (
            {"overrides": {"fc": 4}},
            r"fc: expected weights or activations, such as \{fc: \{weights: 8\}\}, found 4",
        ),
        ({"scheme": "dorefa", "weights": 2, "activations": 2, "batch_norm": "fold"}, 'must be "keep"'),
        ({"overrides": {"fc": {"weights": 1}}}, r"expected 2..8 bits, or float, found 1"),
        ({"rescale": True}, "belongs to scheme"),
        ({"weights": "float", "activations": "float"}, "both float: nothing would"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Quantize(**options)


def test_stage_foresees_what_dorefa_cannot_hold() -> None:
    dorefa = Quantize(scheme="dorefa", weights=7, activations=4)
    with pytest.raises(RecipeError, match="no level at zero"):
        dorefa.foresee(Outlook(sparsity=0.5))
    with pytest.raises(RecipeError, match="choose at most 6"):
        dorefa.foresee(Outlook(int8_saturates=True))
    outlook = dorefa.foresee(Outlook())
    with pytest.raises(RecipeError, match="no level at zero"):
        Prune(sparsity=0.5).foresee(outlook)
    overridden = Quantize(weights="float", activations="float", overrides={"fc": {"weights": 4}})
    assert overridden.foresee(Outlook()).weight_bits == 4
