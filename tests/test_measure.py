"""Counts against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from compress_aug import measure
from compress_aug.batch import Batch
from compress_aug.pruning import mask_smallest


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
