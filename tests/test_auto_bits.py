"""bits: auto, against counts by hand and the file that is written; what is told, recorded, resumed and refused."""

import io
import itertools
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from test_sensitivity import DATA, fake_quantized, learned
from torch import nn
from toys import TinyResidual, tiny_net

import compress_aug
from compress_aug import deploy, load_recipe
from compress_aug.errors import QuantizeError, RecipeError
from compress_aug.folders import shipped
from compress_aug.progress import counting
from compress_aug.quantization import finalize, quantize, weight_bits, without_quantizers
from compress_aug.quantization.sizes import float_bytes, layer_bytes, quantized_layers, weight_bytes
from compress_aug.running import check
from compress_aug.sensitivity import LayerScan, Sensitivity, scan_bits
from compress_aug.stages import Quantize
from compress_aug.stages.auto_bits import choice, costs, packed_bytes, sizes_of, tell
from compress_aug.surgery import copy_model, surgery_log
from compress_aug.training import mixed_seed


def inputs():
    return [DATA.normalise(batch.images) for batch in DATA.train.batches(32)]


def quantized(model, **options):
    return quantize(model, inputs()[0][:1], calibration=inputs(), **options)


def test_sizes_by_hand():
    model = quantized(TinyResidual(), weights=3, activations=4)
    assert quantized_layers(model) == {
        "stem": {"weights": 216, "bits": 8, "scales": 8, "biases": 8},
        "conv": {"weights": 576, "bits": 3, "scales": 8, "biases": 8},
        "fc": {"weights": 32, "bits": 8, "scales": 4, "biases": 4},
    }
    quantizers = sum(
        name.count(".") == 1 and "activation_quantizers" in name for name, _ in model.named_modules()
    )
    assert float_bytes(model) == 4 * quantizers > 0
    assert weight_bytes(model) == 216 + 216 + 32 + 4 * 40 + float_bytes(model)


def test_what_stays_float_weighs_four_bytes():
    floats = nn.Sequential(*tiny_net(), nn.BatchNorm1d(4))
    model = quantized(floats.eval(), weights=4, first_and_last="float")
    assert list(quantized_layers(model)) == ["3"]
    ends = (8 * 27 + 8) + (8 * 4 + 4)
    scales = len([name for name, _ in model.named_parameters() if "activation_quantizers" in name])
    assert float_bytes(model) == 4 * (ends + scales), (
        "the batch norm behind the linear layer is folded into it"
    )
    alone = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(7))
    assert float_bytes(alone) == 4 * 28


def wide_net():
    """Two layers of which each is worth packing, between two that stay at 8 bits."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(before, after, 3, padding=1) for before, after in ((3, 16), (16, 32), (32, 32))]
    steps = [module for one in convolutions for module in (one, nn.ReLU())]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def test_what_the_file_packs(tmp_path):
    """Between files of other bits the weights alone differ, and what unpacks them: 350 bytes or so a layer."""
    graph = {}
    for bits in (8, 6, 4, 3, 2):
        model = finalize(quantized(wide_net(), weights=bits))
        file = tmp_path / f"{bits}.onnx"
        deploy.write(model, file, image_shape=DATA.image_shape)
        graph[bits] = file.stat().st_size - packed_bytes(model)
    assert abs(graph[6] - graph[8]) < 50, "stored in a byte each"
    for bits in (4, 3, 2):
        assert 0 < graph[bits] - graph[8] < 2 * 1200, graph


CHOICES = (8, 4, 2)


@pytest.fixture(scope="module")
def net():
    return learned(TinyResidual())


def forms(model, first_and_last=None, **options):
    """The model at each of the choices; the first and the last layer take part unless they have bits of their own."""
    return {
        bits: quantized(copy_model(model), weights=bits, first_and_last=first_and_last or bits, **options)
        for bits in CHOICES
    }


class Spoken:
    """What a stage says and records, in place of a run."""

    def __init__(self):
        self.lines, self.notes, self.row = [], [], {}
        self.setup = SimpleNamespace(
            data=DATA,
            seed=1,
            rehearsal=False,
            target=SimpleNamespace(form="onnxruntime", name="host_cpu", int8_saturates=False),
            show=self.lines.append,
            note=self.notes.append,
            record=self.row.__setitem__,
            counting=partial(counting, None),
        )


def chosen(made, size_mb, **more):
    return choice(made, size_mb, 64, Spoken().setup, **{"ends_take_part": True, **more})


def loss_with(model, weights):
    """The mean loss over all training images of the folded float model with other weights."""
    other = copy_model(model).eval()
    for name, weight in weights.items():
        other.get_submodule(name).weight.data = weight
    everything = next(iter(DATA.train.batches(64)))
    with torch.no_grad():
        logits = other(DATA.normalise(everything.images))
    return float(nn.functional.cross_entropy(logits, everything.targets))


def test_the_least_loss_of_all_choices_under_the_budget(net):
    """By hand: the loss with each layer of the float net alone at each of the bits; every combination is tried."""
    layers = {name: net.get_submodule(name).weight for name in ("stem", "conv", "fc")}
    base = loss_with(net, {})
    grown = {
        name: {bits: loss_with(net, {name: fake_quantized(weight, bits)}) - base for bits in CHOICES}
        for name, weight in layers.items()
    }
    bytes_of = {
        name: {bits: layer_bytes(weight.numel(), bits, len(weight), len(weight)) for bits in CHOICES}
        for name, weight in layers.items()
    }
    made = forms(net)
    rest = float_bytes(made[8])
    seen = set()
    for budget in (rest + 380, rest + 480, rest + 600, rest + 740, rest + 2000):
        found = chosen(made, budget / 1e6)
        for name, losses in grown.items():
            worst = [max(loss for b, loss in losses.items() if b >= bits) for bits in CHOICES]
            assert list(found.costs[name].values()) == pytest.approx(worst, abs=2e-5)
        best = min(
            sum(found.costs[name][bits] for name, bits in zip(layers, combination, strict=True))
            for combination in itertools.product(CHOICES, repeat=3)
            if rest + sum(bytes_of[name][b] for name, b in zip(layers, combination, strict=True)) <= budget
        )
        assert sum(found.costs[name][bits] for name, bits in found.bits.items()) == pytest.approx(best)
        assert found.sizes.total(found.bits) <= budget
        seen.add(tuple(found.bits.values()))
    assert len(seen) > 2 and (8, 8, 8) in seen, seen


def test_what_was_chosen_is_told_and_recorded(net):
    made, spoken = forms(net), Spoken()
    found = choice(made, 0.0006, 64, spoken.setup, ends_take_part=True)
    overrides = {name: {"weights": bits} for name, bits in found.bits.items()}
    model = quantized(copy_model(net), weights=8, overrides=overrides)
    assert weight_bits(model) == found.bits
    tell(found, model, spoken.setup)
    assert spoken.row["layer_bits"] == found.bits
    assert spoken.row["reached"]["size_mb"] == weight_bytes(model) / 1e6 <= 0.0006
    assert found.sizes.total(found.bits) == weight_bytes(model)
    assert spoken.row["loss_increases"]["fc"] == {str(bits): loss for bits, loss in found.costs["fc"].items()}
    head, *rows = spoken.lines
    assert (
        head.split() == ["layer", "weights", "bits", "loss", "grows", "by"]
        and len({*map(len, spoken.lines)}) == 1
    )
    for row, (name, bits) in zip(rows, found.bits.items(), strict=True):
        assert row.split() == [
            name,
            str(made[8].get_submodule(name).weight.numel()),
            str(bits),
            f"{found.costs[name][bits]:+.4f}",
        ]
    assert f"{weight_bytes(model) / 1e6:.4g} of 0.0006 MB" in spoken.notes[0]
    assert f"{packed_bytes(model) / 1e6:.4g} MB" in spoken.notes[1]


def test_what_is_written_is_told_where_it_is_more_than_the_budget(net):
    made, spoken = forms(net), Spoken()
    found = choice(made, 0.0006, 64, spoken.setup, ends_take_part=True)
    overrides = {name: {"weights": bits} for name, bits in found.bits.items()}
    model = quantized(copy_model(net), weights=8, overrides=overrides)
    tell(found, model, spoken.setup)
    assert packed_bytes(model) > 600, "these layers are too small to be packed"
    assert "MORE than size_mb 0.0006" in spoken.notes[1] and "too small to be packed" in spoken.notes[1]
    assert packed_bytes(model) == packed_bytes(model, packs=False)
    wide = quantized(learned(wide_net()), weights=2)
    assert packed_bytes(wide) < packed_bytes(wide, packs=False)
    spoken.setup.target = SimpleNamespace(form="tensorrt", name="jetson", int8_saturates=False)
    tell(found, model, spoken.setup)
    assert "nothing is packed for jetson" in spoken.notes[-1]
    roomy = choice(made, 0.1, 64, spoken.setup, ends_take_part=True)
    tell(roomy, quantized(copy_model(net), weights=8), spoken.setup)
    assert "MORE" not in spoken.notes[-1]


def test_losses_that_count_as_with_more_bits_are_told(net):
    made, spoken = forms(net), Spoken()
    found = choice(made, 0.0006, 64, spoken.setup, ends_take_part=True)
    images = islice(DATA.train.batches(64, order_seed=mixed_seed(1, "calibrate")), 1)
    scanned = scan_bits(without_quantizers(made[8]), images, DATA.normalise, CHOICES, forms=made)
    lower = 0
    for increases in scanned.loss_increases().values():
        lower += sum(loss < max(increases[: place + 1]) for place, loss in enumerate(increases))
    assert found.raised == lower
    told = replace(found, raised=2).summary(500)
    assert "2 of 9 measured losses were lower than with more bits" in told
    assert "lower than with more bits" not in replace(found, raised=0).summary(500)


def test_layers_with_bits_of_their_own_are_left(net):
    made = forms(net, first_and_last=8)
    sizes = sizes_of(made)
    assert list(sizes.layers) == ["conv"] and sizes.counts == {"conv": 576}
    for bits, form in made.items():
        assert sizes.total({"conv": bits}) == weight_bytes(form)
    with pytest.raises(QuantizeError, match=r"no layer to choose for.*first_and_last: auto"):
        sizes_of(forms(net, first_and_last=8, overrides={"conv": {"weights": 4}}))
    # What has its bits by chance at one of the choices is not free.
    pinned = forms(net, overrides={"conv": {"weights": 4}})
    assert list(sizes_of(pinned).layers) == ["stem", "fc"]


def test_a_budget_out_of_reach_is_refused_before_anything_is_measured(net, monkeypatch):
    monkeypatch.setattr("compress_aug.sensitivity.scan_bits", None)
    made = forms(net, first_and_last=8)
    least = sizes_of(made).smallest
    with pytest.raises(QuantizeError) as raised:
        chosen(made, (least - 1) / 1e6, ends_take_part=False)
    told = str(raised.value)
    assert (
        f"take {least / 1e6:.4g} MB" in told and "first_and_last: auto" in told and "prune_channels" in told
    )
    assert "fewer bits" not in told, "there are none"
    with pytest.raises(QuantizeError) as raised:
        chosen({bits: form for bits, form in made.items() if bits > 2}, 1e-6)
    assert "name fewer bits in choices" in str(raised.value) and "first_and_last: auto" not in str(
        raised.value
    )


def test_fewer_bits_never_cost_less():
    layers = (LayerScan("a", 1, 1, 0.0, (0.5,) * 3, cross_entropies=(1.2, 1.1, 1.4)),)
    found = costs(Sensitivity("bits", CHOICES, 0.5, 10, 1, layers, 1.0))
    assert list(found["a"]) == [8, 4, 2] and list(found["a"].values()) == pytest.approx([0.2, 0.2, 0.4])
    broken = Sensitivity("bits", CHOICES, 0.5, 10, 1, layers, float("nan"))
    with pytest.raises(QuantizeError, match=r'layer "a".*no finite number'):
        costs(broken)


def recipe(folder, keys, stages="", target="host_cpu"):
    path = folder / "recipe.yaml"
    path.write_text(f"version: 1\ntarget: {target}\nstages:\n{stages}  - quantize: {{{keys}}}\n")
    return load_recipe(path)


def ran(folder, keys, model, stages="", **given):
    out = io.StringIO()
    console = Console(file=out, width=200)
    read = recipe(folder, keys, stages, given.pop("target", "host_cpu"))
    given = {"out": folder / "run", **given}
    result = compress_aug.run(
        read, model=copy_model(model), data=DATA, device="cpu", console=console, **given
    )
    return result, out.getvalue()


def test_a_recipe_picks_bits_and_the_run_comes_back_with_them(tmp_path, net):
    keys = "bits: auto, size_mb: 0.00064, first_and_last: auto, choices: [4, 2, 8], calibrate: 64"
    result, out = ran(tmp_path, keys, net)
    row = result.report["stages"][0]
    assert weight_bits(result.model) == row["layer_bits"] and len({*row["layer_bits"].values()}) > 1
    assert row["reached"]["size_mb"] == weight_bytes(result.model) / 1e6 <= 0.00064
    for name, bits in row["layer_bits"].items():
        assert next(line.split()[2] for line in out.splitlines() if line.split()[:1] == [name]) == str(bits)
    assert "bits: auto chose" in out and "as `export` writes them" in out
    assert not any("loss grows by" in note for note in row["notes"]), "the table is told once"
    kept = surgery_log(result.model)[-1]["overrides"]
    assert kept == {name: {"weights": bits} for name, bits in row["layer_bits"].items()}
    again = compress_aug.load(result.folder, model=copy_model(net))
    assert weight_bits(again) == row["layer_bits"]
    images = inputs()[0]
    assert torch.equal(again(images), result.model(images))
    read = load_recipe(result.folder / "recipe.yaml")
    assert (read.stages[0].bits, read.stages[0].size_mb, read.stages[0].choices) == (
        "auto",
        0.00064,
        [4, 2, 8],
    )
    resumed, _ = ran(tmp_path, keys, net, resume=True)
    assert resumed.report["stages"] == result.report["stages"]


def test_explicit_bits_win_and_the_ends_keep_theirs(tmp_path):
    wide = learned(wide_net())
    keys = 'bits: auto, size_mb: 0.008, overrides: {"2": {weights: 3}, "4": {activations: 5}}, calibrate: 32'
    result, _ = ran(tmp_path, keys, wide)
    assert (
        weight_bits(result.model)
        == {"0": 8, "2": 3, "4": 4, "8": 8}
        == result.report["stages"][0]["layer_bits"]
    )
    assert list(result.report["stages"][0]["loss_increases"]) == ["4"]
    five = [module for module in result.model.modules() if type(module).__name__ == "QuantIdentity"]
    assert 5 in [int(one.act_quant.bit_width()) for one in five], "what it reads is not touched"


def test_where_int8_saturates_nothing_gets_8_bits(tmp_path, net):
    keys = "bits: auto, size_mb: 1, first_and_last: auto, calibrate: 32"
    host = (shipped("export") / "targets" / "host_cpu.yaml").read_text()
    (tmp_path / "old.yaml").write_text(host.replace("int8_saturates: auto", "int8_saturates: true"))
    result, out = ran(tmp_path, keys, net, target=tmp_path / "old.yaml")
    assert {*weight_bits(result.model).values()} == {7} and "7 bits instead of 8" in out


def test_masks_stay_zero_and_are_measured(tmp_path, net):
    stages = "  - prune: {sparsity: 0.5}\n"
    result, _ = ran(tmp_path, "bits: auto, size_mb: 0.0008, first_and_last: auto, calibrate: 32", net, stages)
    assert result.report["stages"][1]["sparsity"] >= 0.5


def test_a_check_refuses_a_budget_out_of_reach_without_training(tmp_path, net):
    read = recipe(tmp_path, "bits: auto, size_mb: 0.0001")
    with pytest.raises(QuantizeError, match=r"cannot reach size_mb 0\.0001"):
        check(read, model=copy_model(net), data=DATA, device="cpu", console=Console(quiet=True))
    reachable = recipe(tmp_path, "bits: auto, size_mb: 0.001, first_and_last: auto")
    rows = check(reachable, model=copy_model(net), data=DATA, device="cpu", console=Console(quiet=True))[
        "stages"
    ]
    assert set(rows[0]["layer_bits"]) == {"stem", "conv", "fc"}


def test_the_plan_says_auto(tmp_path):
    row = recipe(tmp_path, "bits: auto, size_mb: 0.12, activations: 4").plan()[0]
    assert row["stage"] == "quantize w auto, ≤ 0.12 MB, a4" and row["bits"] == "w auto a4"


def test_a_trial_of_channels_takes_the_most_bits():
    stage = Quantize(bits="auto", size_mb=0.1, choices=[2, 4], first_and_last="auto", calibrate=500)
    trial = stage.for_trials(32)
    assert (trial.bits, trial.weights, trial.first_and_last, trial.calibrate) == (None, 4, 8, 32)
    assert Quantize(weights=4, calibrate=16).for_trials(32) == Quantize(weights=4, calibrate=16)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("bits: auto", "bits: auto needs size_mb"),
        ("bits: 4, size_mb: 1", "the same bits for all layers are written weights: 4"),
        ("size_mb: 1", "size_mb: only bits: auto"),
        ("choices: [2, 4]", "choices: only bits: auto"),
        ("first_and_last: auto", "first_and_last: auto goes with bits: auto"),
        ("bits: auto, size_mb: 1, weights: 4", "leave weights out"),
        ("bits: auto, size_mb: 1, choices: [4, 4]", "two or more different bits"),
        ("bits: auto, size_mb: 1, choices: [4, 9]", "expected 2..8 bits, found 9"),
        ("bits: auto, size_mb: 0", "a number above 0"),
        ("bits: auto, size_mb: 1, scheme: dorefa", "DoReFa's weights lose their size"),
        ("bits: auto, scheme: dorefa", "DoReFa's weights lose their size"),
        ("bits: auto, scheme: dorefa, weights: 4", "DoReFa's weights lose their size"),
        ("first_and_last: soft", "expected 2..8 bits, or float"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, keys, told):
    with pytest.raises(RecipeError) as raised:
        recipe(tmp_path, keys)
    assert told in str(raised.value) and len(raised.value.problems) == 1
