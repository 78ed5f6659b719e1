"""Counts against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from compress_aug import checkpoint, measure
from compress_aug.batch import Batch
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import finalize, quantize
from compress_aug.quantization.sizes import weight_bytes
from compress_aug.surgery import copy_model, make_permanent


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def test_sizes_by_hand():
    model = net()
    assert measure.parameters(model) == (4 * 27 + 4) + 8 + (144 * 5 + 5)
    assert measure.macs(model, (3, 6, 6)) == 36 * 4 * 27 + 144 * 5
    assert measure.sparsity(model) == 0.0
    assert measure.nonzero_parameters(model) == measure.parameters(model)


def test_masked_sizes():
    model = mask_smallest(net(), 0.25)
    zeros = round(0.25 * (108 + 720))
    assert measure.sparsity(model) == pytest.approx(zeros / 828)
    assert measure.parameters(model) == 845, "a mask is no parameter"
    assert measure.nonzero_parameters(model) == measure.parameters(model) - zeros
    assert measure.macs(model, (3, 6, 6)) == 36 * 4 * 27 + 144 * 5


class Attending(nn.Module):
    """Attention over pixels: of itself, or with keys and values of another kind."""

    def __init__(self, crossed):
        super().__init__()
        self.stem, self.crossed = nn.Conv2d(3, 8, 1), crossed
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        other = x.abs() if self.crossed else x
        return self.head(self.attention(x, other, other, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("crossed", [False, True])
def test_attention_counts_the_same_in_float_and_quantized(crossed):
    torch.manual_seed(0)
    model, images = Attending(crossed).eval(), torch.rand(4, 3, 2, 3)
    attention = 6 * 8 * 24 + 2 * 6 * 6 * 8 + 6 * 8 * 8
    assert measure.macs(model, (3, 2, 3)) == 6 * 3 * 8 + attention + 8 * 5
    mask_smallest(model, 0.25)
    assert measure.sparsity(model) == pytest.approx(round(0.25 * 320) / 320)
    quantized = quantize(copy_model(model), images[:1], calibration=[images])
    for form in (quantized, finalize(copy_model(quantized))):
        assert measure.sparsity(form) == measure.sparsity(model)
        assert measure.macs(form, (3, 2, 3)) == measure.macs(model, (3, 2, 3))
    assert weight_bytes(quantized) == weight_bytes(make_permanent(copy_model(quantized)))
    for parameter in quantized.parameters():
        parameter.data.add_(0.01)
    quantized(images)
    assert measure.sparsity(quantized) == measure.sparsity(model), "its zeros are held by masks"


@pytest.mark.parametrize("norms", ["fold", "keep"])
def test_zeros_of_rounding_are_no_sparsity_in_any_form(norms, tmp_path):
    model, images = mask_smallest(net(), 0.25).eval(), torch.rand(8, 3, 6, 6)
    asked, weights = measure.sparsity(model), measure.nonzero_parameters(model)
    quantized = quantize(
        copy_model(model), images[:1], weights=2, first_and_last=2, batch_norm=norms, calibration=[images]
    )
    final = finalize(copy_model(quantized))
    checkpoint.save(final, tmp_path / "model.safetensors", image_shape=(3, 6, 6), classes=5)
    again = checkpoint.rebuild(net(), tmp_path / "model.safetensors")
    for form in (quantized, final, copy_model(final), again):
        assert measure.sparsity(form) == asked
    gone = measure.parameters(final) - measure.nonzero_parameters(final)
    assert gone == measure.parameters(model) - weights
    if norms == "keep":
        stored = int((measure.effective_weight(final.get_submodule("0")) == 0).sum())
        assert stored > measure.zeros(final.get_submodule("0")), "two bits round more to zero than was masked"
        assert measure.sparsity(mask_smallest(final, 0.9)) == pytest.approx(0.9, abs=1e-3)


def test_counting_changes_nothing():
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure.macs(model, (3, 6, 6))
    batch = Batch(
        torch.zeros(4, 3, 6, 6, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    )
    measure.accuracy(model, [batch], lambda images: images.float())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_accuracy_counts_over_batches_of_any_size():
    class First(nn.Module):
        def forward(self, x):
            return x[:, :3, 0, 0]

    def batch(rows):
        images = torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8)
        for n, (guess, _) in enumerate(rows):
            images[n, guess] = 255
        return Batch(images, torch.tensor([target for _, target in rows]), torch.arange(len(rows)))

    batches = [batch([(0, 0), (1, 1), (2, 0)]), batch([(1, 1)])]
    assert measure.accuracy(First(), batches, lambda images: images.float()) == 0.75
    assert measure.accuracy(First(), [], lambda images: images.float()) == 0.0


def test_macs_of_other_inputs_and_number_types():
    assert measure.macs(net().double(), (3, 6, 6)) == 36 * 4 * 27 + 144 * 5
    assert measure.macs(nn.Conv1d(3, 4, 3, padding=1).bfloat16(), (3, 8)) == 8 * 4 * 9
