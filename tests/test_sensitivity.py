"""Sensitivity against `mask_smallest` on a copy, by hand; the model stays as it is; what is derived, drawn, refused."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys import TinyResidual, tiny_data, tiny_net

from compress_aug import measure
from compress_aug.errors import DataError, PruneError
from compress_aug.pictures.sensitivity_drawing import draw_sensitivity
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import quantize
from compress_aug.sensitivity import Change, LayerScan, Sensitivity, scan, scan_pruning
from compress_aug.sensitivity.prune import masked
from compress_aug.sensitivity.scan import layer_macs
from compress_aug.surgery import copy_model, surgery_log

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
    assert alone.layers == (LayerScan("fc", 32, 32, 0.0, accuracies=(found.layers[2].accuracies[1],)),)
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
    by_hand = copy_model(model)
    mask_smallest(by_hand, 0.95, layers=["attention"])
    assert found.layers[0].accuracies == (accuracy(by_hand),) != (found.base,)
    assert found.layers[0].macs is None, "torch reads its weight and never calls it"


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
    }


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
