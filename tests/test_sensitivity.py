"""Sensitivity against a changed copy, by hand; bits against every choice; the model stays; what is drawn, refused."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn.utils import parametrizations
from toys import TinyResidual, tiny_data, tiny_net

from compress_aug import measure
from compress_aug.errors import DataError, PruneError, QuantizeError
from compress_aug.pictures.sensitivity_drawing import _frames, draw_sensitivity
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import quantize
from compress_aug.quantization.calibrate import Magnitudes
from compress_aug.sensitivity import (
    Change,
    LayerScan,
    Sensitivity,
    choose,
    choose_bits,
    scan,
    scan_bits,
    scan_pruning,
)
from compress_aug.sensitivity.bits import rounded_weight
from compress_aug.sensitivity.prune import masked
from compress_aug.sensitivity.scan import layer_macs
from compress_aug.surgery import copy_model, make_permanent, surgery_log

GRID = (0.3, 0.6, 0.9)
DATA = tiny_data(validation=48)


def learned(model):
    """Trained until it knows most of the quarters, so that accuracies differ."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(8):
        for batch in DATA.train.batches(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(DATA.normalise(batch.images)), batch.targets).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def dense():
    return learned(TinyResidual())


def inputs():
    return [DATA.normalise(batch.images) for batch in DATA.train.batches(32)]


SUBJECTS = {
    "dense": lambda model: model,
    "masked": lambda model: mask_smallest(model, 0.5),
    "quantized": lambda model: quantize(model, inputs()[0][:1], weights=4, calibration=inputs()),
    "masked and quantized": lambda model: SUBJECTS["quantized"](SUBJECTS["masked"](model)),
}


def scanned(model, sparsities=GRID, layers=None, **more):
    return scan_pruning(model, DATA.validation.batches(20), DATA.normalise, sparsities, layers, **more)


def accuracy(model):
    return measure.accuracy(model, DATA.validation.batches(20), DATA.normalise)


def cross_entropy(model):
    everything = next(iter(DATA.validation.batches(48)))
    with torch.no_grad():
        logits = copy_model(model).eval()(DATA.normalise(everything.images))
    return float(nn.functional.cross_entropy(logits, everything.targets))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_number_is_that_of_masking_one_layer_of_a_copy(dense, subject):
    model = SUBJECTS[subject](copy_model(dense)).eval()
    found = scanned(model)
    assert found.base == accuracy(model) and found.images == 48 and found.amounts == GRID
    assert [layer.name for layer in found.layers] == ["stem", "conv", "fc"]
    for layer in found.layers:
        for place, sparsity in enumerate(GRID):
            by_hand = copy_model(model)
            one = by_hand.get_submodule(layer.name)
            has = round(sparsity * layer.parameters) <= int((measure.effective_weight(one) == 0).sum())
            if not has:
                mask_smallest(one, sparsity)
            assert has == (place < layer.already)
            assert layer.accuracies[place] == accuracy(by_hand), (layer.name, sparsity)
            assert layer.cross_entropies[place] == pytest.approx(cross_entropy(by_hand), rel=1e-5)
    assert len({one for layer in found.layers for one in layer.accuracies}) > 2, "else nothing was told apart"
    assert any(layer.already for layer in found.layers) == ("masked" in subject)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_model_stays_as_it_is_bit_for_bit(dense, subject):
    model = SUBJECTS[subject](copy_model(dense)).train()
    before, log = {name: value.clone() for name, value in model.state_dict().items()}, surgery_log(model)
    scanned(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert model.training and surgery_log(model) == log
    assert all(parameter.requires_grad for parameter in model.stem.parameters())


@pytest.mark.parametrize("subject", ["dense", "masked"])
def test_a_masked_layer_is_put_back_even_after_an_error(dense, subject):
    layer = SUBJECTS[subject](copy_model(dense)).conv
    before = measure.effective_weight(layer).clone()
    with pytest.raises(ZeroDivisionError), masked(layer, 0.75):
        assert (measure.effective_weight(layer) == 0).double().mean() == 0.75
        1 / 0  # noqa: B018
    assert torch.equal(measure.effective_weight(layer), before)


def test_a_layer_does_not_depend_on_the_others_nor_on_the_rest_of_the_grid(dense):
    found = scanned(dense)
    assert scanned(dense) == found
    alone = scanned(dense, (0.6,), ["f*"])
    fc = found.layers[2]
    one = LayerScan("fc", 32, 32, 0.0, (fc.accuracies[1],), cross_entropies=(fc.cross_entropies[1],))
    assert alone.layers == (one,)
    assert alone.macs == found.macs
    assert [layer.name for layer in scanned(dense, (0.6,), ["Conv2d"]).layers] == ["stem", "conv"]
    assert scanned(dense, (0.9, 0.3, 0.6, 0.3)) == found, "scanned in rising order, each once"


def test_attention_is_pruned_where_it_computes():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, 4)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).mT
            return self.fc(self.attention(tokens, tokens, tokens)[0].mean(1))

    model = learned(Attentive())
    found = scanned(model, (0.95,), ["attention"])
    assert [layer.name for layer in found.layers] == ["attention.in_proj", "attention.out_proj"]
    for layer in found.layers:
        by_hand = mask_smallest(copy_model(model), 0.95, layers=[layer.name])
        assert layer.accuracies == (accuracy(by_hand),)
        assert layer.macs is None, "torch reads its weight and never calls it"
    assert any(layer.accuracies != (found.base,) for layer in found.layers)
    few = scan_bits(model, DATA.validation.batches(32), DATA.normalise, (2,), layers=["attention.in_proj"])
    with torch.no_grad():
        by_hand = copy_model(model)
        by_hand.attention.in_proj_weight.copy_(fake_quantized(model.attention.in_proj_weight, 2))
    assert few.layers[0].accuracies == (accuracy(by_hand),)


def test_macs_are_those_of_the_whole_model():
    model = tiny_net()
    counts = layer_macs(model.eval(), torch.zeros(1, 3, 8, 8))
    assert counts == {"0": 8 * 27 * 64, "3": 8 * 72 * 64, "8": 32}
    assert sum(counts.values()) == measure.macs(model, (3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_progress_counts_the_passes(dense):
    told = []
    scanned(mask_smallest(copy_model(dense), 0.5), progress=lambda done, total: told.append((done, total)))
    total = told[0][1]
    assert told == [(done, total) for done in range(total + 1)]
    assert total < 1 + 3 * len(GRID), "nothing is measured where a layer has the zeros already"


def test_any_change_that_can_be_undone_is_scanned(dense):
    @contextmanager
    def shrunk(layer, factor):
        before = layer.weight.detach().clone()
        layer.weight.mul_(factor)
        yield
        layer.weight.copy_(before)

    change = Change("shrink", torch.no_grad()(shrunk), has=lambda layer, factor: factor == 1)
    found = scan(dense, DATA.validation.batches(20), DATA.normalise, change, (1, 0.0))
    assert found.kind == "shrink" and [layer.already for layer in found.layers] == [1, 1, 1]
    without = copy_model(dense)
    nn.init.zeros_(without.conv.weight)
    assert found.layers[1].accuracies == (found.base, accuracy(without))


def result(*accuracies, already=0, base=0.9, images=1000):
    layers = (LayerScan("a", 100, 1, 0.4, accuracies, already), LayerScan("b", 300, 3, 0.0, (0.1,) * 3))
    return Sensitivity("prune", GRID, base, images, 4, layers)


def test_what_a_layer_bears():
    found = result(0.9, 0.89, 0.889)
    assert found.losses()["a"] == (0.0, 1.0, 1.1)
    assert found.bearable(1.0) == {"a": 0.6, "b": None}, "0.90 - 0.89 is one point, not a little more"
    assert found.bearable(1.1)["a"] == 0.9 and found.bearable(0)["a"] == 0.3
    assert found.bears(1.0) == {"a": "0.6", "b": "none"}
    assert result(0.8, 0.95, 0.2).bearable(1.0)["a"] == 0.6, "at a milder sparsity it may lose more"
    assert result(0.9, 0.5, 0.5, already=1).bears(1.0)["a"] == "as it is"


def test_what_all_layers_bear_together():
    assert result(0.9, 0.89, 0.1).together(1.0) == pytest.approx(0.6 * 100 / 400)
    assert result(0.9, 0.1, 0.1, already=1).together(1.0) == pytest.approx(0.4 * 100 / 400), "zeros stay"


def test_plain_data_for_other_programs():
    import json

    found = json.loads(json.dumps(result(0.9, 0.89, 0.889).to_json()))
    assert found["kind"] == "prune" and found["base"] == 0.9 and found["amounts"] == [0.3, 0.6, 0.9]
    assert found["layers"][0] == {
        "name": "a",
        "parameters": 100,
        "macs": 1,
        "sparsity": 0.4,
        "accuracies": [0.9, 0.89, 0.889],
        "already": 0,
        "cross_entropies": [],
    }
    assert found["base_cross_entropy"] is None, "a loss that was not measured is no number"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        (tiny_net, [(0.5, 1.0)], "from 0 to below 1; found 1.0"),
        (tiny_net, [(-0.1,)], "found -0.1"),
        (tiny_net, [(float("nan"),)], "found nan"),
        (tiny_net, [()], "No sparsity is given"),
        (TinyResidual, [GRID, ["con"]], 'did you mean "conv"'),
        (lambda: nn.Sequential(nn.ReLU()), [GRID], "no convolution or linear layer"),
        (Tied, [GRID], "share one weight"),
    ],
)
def test_what_cannot_be_scanned(model, arguments, told):
    with pytest.raises(PruneError, match=told):
        scanned(model(), *arguments)


def test_without_images(dense):
    with pytest.raises(DataError, match="at least one batch"):
        scan_pruning(dense, [], DATA.normalise)


BITS = (8, 4, 2)


def scanned_bits(model, bits=BITS, layers=None, **more):
    return scan_bits(model, DATA.validation.batches(20), DATA.normalise, bits, layers, **more)


def fake_quantized(weight, bits):
    """By hand: one grid for each output channel, symmetric, without the lowest integer."""
    flat = weight.detach().flatten(1)
    largest = flat.abs().amax(1)
    end = {2: 1.22, 4: 2.47}.get(bits, float("inf"))
    count = (flat != 0).sum(1).clamp_min(1)
    ends = torch.minimum(largest, end * (flat.square().sum(1) / count).sqrt()) if bits < 6 else largest
    top = 2 ** (bits - 1) - 1
    scale = (ends / top)[:, None]
    return ((flat / scale).round().clamp(-top, top) * scale).view_as(weight)


@pytest.mark.parametrize("subject", ["dense", "masked"])
def test_each_number_of_bits_is_that_of_fake_quantizing_one_layer_of_a_copy(dense, subject):
    model = SUBJECTS[subject](copy_model(dense)).eval()
    found = scanned_bits(model)
    assert found.kind == "bits" and found.amounts == BITS and found.base == accuracy(model)
    assert found.base_cross_entropy == pytest.approx(cross_entropy(model), rel=1e-5)
    for layer in found.layers:
        for place, bits in enumerate(BITS):
            by_hand = make_permanent(copy_model(model))
            one = by_hand.get_submodule(layer.name)
            one.weight.data = fake_quantized(one.weight, bits)
            assert layer.accuracies[place] == accuracy(by_hand), (layer.name, bits)
            assert layer.cross_entropies[place] == pytest.approx(cross_entropy(by_hand), rel=1e-4)
    grown = found.loss_increases()
    assert all(abs(losses[0]) < 0.005 < max(abs(loss) for loss in losses) for losses in grown.values()), grown


def test_a_layer_that_is_called_by_keyword_has_its_weights_alone_changed():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(DATA.image_shape[0], 4, 3), nn.Linear(4, len(DATA.classes))

        def forward(self, images):
            return self.fc(self.conv(input=images).relu().mean((2, 3)))

    torch.manual_seed(0)
    net = ByKeyword().eval()
    alone, both = (scanned_bits(net, (2,), activations=activations).layers for activations in (False, True))
    assert both[0] == alone[0]
    assert both[1].cross_entropies != alone[1].cross_entropies


def test_weights_are_those_that_quantize_starts_from(dense):
    """Folding the batch norm scales a channel and its grid alike."""
    for bits in (2, 3, 4, 6, 8):
        start = quantize(
            copy_model(dense), inputs()[0][:1], weights=bits, first_and_last=bits, calibration=inputs()
        )
        norm = dense.norm
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        expected = start.stem.quant_weight().value.detach()
        torch.testing.assert_close(rounded_weight(dense.stem, bits) * factor[:, None, None, None], expected)


def test_inputs_get_the_same_bits(dense):
    """Of the last layer, whose input is easily quantized by hand on the end that the same images set."""
    found = scanned_bits(dense, (2,), ["fc"], activations=True)
    assert found.kind == "bits with inputs"
    read, counted = [], Magnitudes()
    by_hand = copy_model(dense)
    hook = by_hand.fc.register_forward_pre_hook(lambda layer, given: read.append(given[0]))
    accuracy(by_hand)
    hook.remove()
    for values in read:
        counted.add(values)
    step = counted.best_end(2, is_unsigned=True) / 3
    by_hand.fc.register_forward_pre_hook(lambda layer, given: (given[0] / step).round().clamp(0, 3) * step)
    by_hand.fc.weight.data = fake_quantized(by_hand.fc.weight, 2)
    assert found.layers[0].cross_entropies[0] == pytest.approx(cross_entropy(by_hand), rel=1e-4)
    assert found.layers[0].cross_entropies != scanned_bits(dense, (2,), ["fc"]).layers[0].cross_entropies
    stem = scanned_bits(dense, (2,), ["stem"], activations=True)
    assert stem.layers[0].cross_entropies[0] != found.base_cross_entropy, "signed inputs"


@pytest.mark.parametrize("subject", ["dense", "masked"])
@pytest.mark.parametrize("activations", [False, True])
def test_bits_leave_the_model_and_the_random_numbers_as_they_are(dense, subject, activations):
    model = SUBJECTS[subject](copy_model(dense)).train()
    before, log = {name: value.clone() for name, value in model.state_dict().items()}, surgery_log(model)
    random = torch.get_rng_state()
    found = scanned_bits(model, (4, 2), activations=activations)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert model.training and surgery_log(model) == log and torch.equal(torch.get_rng_state(), random)
    assert scanned_bits(model, (2, 4, 2), activations=activations) == found, "in falling order, each once"
    alone = scanned_bits(model, (2,), ["conv"], activations=activations)
    assert alone.layers[0].cross_entropies == found.layers[1].cross_entropies[1:]


def test_masked_weights_stay_zero_at_any_bits(dense):
    layer = mask_smallest(copy_model(dense), 0.5).conv
    for bits in (2, 4, 8):
        assert torch.all(rounded_weight(layer, bits)[layer.weight_mask == 0] == 0)


def test_what_layers_bear_in_bits():
    layers = (LayerScan("a", 100, 1, 0.4, (0.9, 0.895, 0.6)), LayerScan("b", 300, 3, 0.0, (0.1,) * 3))
    found = Sensitivity("bits", BITS, 0.9, 1000, 4, layers, 0.3)
    assert found.bears(1.0) == {"a": "4", "b": "none"} and found.heads() == ("8 bits", "4 bits", "2 bits")
    assert found.together(1.0) == pytest.approx((4 * 100 + 32 * 300) / 400)


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        (tiny_net, [(8, 1)], "from 2 to 8; found 1"),
        (tiny_net, [(4.0,)], "found 4.0"),
        (tiny_net, [(True,)], "found True"),
        (tiny_net, [()], "No bits are given"),
        (lambda: nn.Sequential(nn.ReLU()), [BITS], "no convolution or linear layer"),
        (Tied, [BITS], '"first" and "second" share one weight'),
        (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))),
            [BITS],
            "computed by something",
        ),
        (lambda: SUBJECTS["quantized"](TinyResidual()), [BITS], "quantized already.*before quantize"),
    ],
)
def test_bits_that_cannot_be_scanned(model, arguments, told):
    with pytest.raises(QuantizeError, match=told):
        scanned_bits(model(), *arguments)


def test_an_unknown_layer_has_no_bits(dense):
    with pytest.raises(PruneError, match='did you mean "conv"'):
        scanned_bits(dense, BITS, ["con"])


def problem(seed, layers=6, negative=False):
    """Random layers with random losses and sizes for random bits, one of them with a single choice."""
    draw = np.random.default_rng(seed)
    losses, sizes = {}, {}
    for n in range(layers):
        bits = sorted(
            draw.choice([2, 3, 4, 6, 8], size=1 if n == 2 else draw.integers(2, 5), replace=False).tolist()
        )
        count = int(draw.integers(1, 200))
        losses[f"l{n}"] = {b: float(draw.normal() if negative else draw.exponential() / b) for b in bits}
        sizes[f"l{n}"] = {b: count * b for b in bits}
    return losses, sizes


def every_choice(losses):
    for bits in itertools.product(*(losses[name] for name in losses)):
        yield dict(zip(losses, bits, strict=True))


def total(values, chosen):
    return sum(values[name][bits] for name, bits in chosen.items())


@pytest.mark.parametrize("seed", range(12))
def test_chosen_bits_against_every_choice(seed):
    losses, sizes = problem(seed, negative=seed % 3 == 0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        low, high = (sum(end(sizes[name].values()) for name in sizes) for end in (min, max))
        budget = int(low + share * (high - low))
        chosen = choose_bits(losses, sizes, budget)
        best = min(total(losses, one) for one in every_choice(losses) if total(sizes, one) <= budget)
        assert list(chosen) == list(losses) and total(sizes, chosen) <= budget
        assert total(losses, chosen) == pytest.approx(best, abs=1e-12)


def test_bytes_that_are_left_go_where_they_cost_nothing():
    losses = {"a": {2: 0.0, 4: 0.0, 8: 0.0}, "b": {2: 0.0, 4: 0.0, 8: 0.1}}
    sizes = {name: {bits: 10 * bits for bits in (2, 4, 8)} for name in losses}
    assert choose_bits(losses, sizes, 10_000) == {"a": 8, "b": 4}
    assert choose_bits(losses, sizes, 100) == {"a": 8, "b": 2}
    assert choose_bits(losses, sizes, 60) == {"a": 4, "b": 2}
    assert choose_bits({}, {}, 0) == {}


def test_a_budget_below_the_smallest_choice_is_refused():
    losses, sizes = problem(0)
    least = sum(min(one.values()) for one in sizes.values())
    assert total(sizes, choose_bits(losses, sizes, least)) == least
    with pytest.raises(QuantizeError, match=f"takes {least:,} bytes, and the budget is {least - 1:,}"):
        choose_bits(losses, sizes, least - 1)


def test_many_sizes_are_chosen_from_nearly_as_well(monkeypatch):
    """With so few states that sums are taken for one another, the budget holds and little is lost."""
    losses, sizes = problem(5, layers=30)
    low, high = (sum(end(sizes[name].values()) for name in sizes) for end in (min, max))
    exact = {share: choose_bits(losses, sizes, int(low + share * (high - low))) for share in (0.0, 0.2, 0.6)}
    monkeypatch.setattr(choose, "_STATES", 60)
    for share, best in exact.items():
        budget = int(low + share * (high - low))
        chosen = choose_bits(losses, sizes, budget)
        assert total(sizes, chosen) <= budget
        assert total(losses, best) <= total(losses, chosen) + 1e-12
        assert total(losses, chosen) <= 1.1 * total(losses, best)


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("count", [1, 70])
def test_the_map_has_a_row_for_each_layer_and_nothing_is_cut_off(tmp_path, count):
    layers = tuple(
        LayerScan(
            f"features.{n}.a.long.name.of.a.layer" * (1 + n % 2), 10**n % 10**7, 5, 0.4, (0.8, 0.5, 0.1), 1
        )
        for n in range(count)
    )
    found = Sensitivity("prune", GRID, 0.8, 100, 9, layers)
    file = draw_sensitivity(found, tmp_path / "a.png", title="t " * 90, note="n " * 300)
    written = pixels(file)
    one = pixels(
        draw_sensitivity(
            Sensitivity("prune", GRID, 0.8, 100, 9, layers[:1]), tmp_path / "b.png", title="t", note="n"
        )
    )
    assert written.shape[0] >= one.shape[0] + 23 * (count - 1)
    for edge in (written[:10], written[-6:], written[:, :12], written[:, -12:]):
        assert (edge == 255).all()


def test_the_map_shows_the_losses(tmp_path):
    found = result(0.9, 0.6, 0.1, already=1)
    written = pixels(draw_sensitivity(found, tmp_path / "a.png", title="t", note="n"))
    colours = {
        tuple(int(colour[n : n + 2], 16) for n in (1, 3, 5)): colour
        for colour in ("#e4e8eb", "#6a1346", "#a82a4a")
    }
    area = {hexed: int((written == colour).all(2).sum()) for colour, hexed in colours.items()}
    cell = 66 * 23
    # Texts and frames take some of each cell, and the scale below shows each colour once more.
    assert 0.6 * cell < area["#e4e8eb"] < 1.1 * cell, "a has the first already"
    assert 0.6 * cell < area["#a82a4a"] < 1.5 * cell, "a loses 30 points once"
    assert 2.8 * cell < area["#6a1346"] < 4.5 * cell, "a loses 80 points once, b three times"
    again = draw_sensitivity(found, tmp_path / "b.png", title="t", note="n").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == again


def test_frames_hold_what_a_layer_bears_and_nothing_else():
    """Losses that do not grow with the amount: each stretch is framed, and the last one ends at what `bears` says."""
    found = result(0.9, 0.5, 0.895)
    grid = np.array([found.losses()[layer.name] for layer in found.layers])
    axes = Figure().add_subplot()
    _frames(axes, grid <= 1.0)
    framed = {
        (round(box.get_x()), round(box.get_x() + box.get_width()), int(box.get_y())) for box in axes.patches
    }
    assert {(start, end) for start, end, row in framed if row == 0} == {(0, 1), (2, 3)}
    assert found.bearable(1.0)[found.layers[0].name] == found.amounts[2]
