"""The log of changes and the copy that deepcopy cannot make."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compress_aug import measure
from compress_aug.errors import ModelError
from compress_aug.surgery import (
    check_shapes,
    copy_model,
    freeze,
    layer_shapes,
    make_permanent,
    record,
    replace_log,
    surgery_log,
)


def masked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    record(model, "mask", layers=layer_shapes(model, ["0"]))
    model(torch.randn(1, 3, 8, 8))
    return model


def test_deepcopy_fails_where_copy_model_works():
    model = masked()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    other = copy_model(model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), other(x))
    assert surgery_log(other) == surgery_log(model)


def test_a_copy_shares_nothing():
    model = masked()
    other = copy_model(model)
    other(torch.randn(4, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    record(other, "more")
    assert all(p.grad is None for p in model.parameters())
    assert len(surgery_log(model)) == 1 and len(surgery_log(other)) == 2
    assert measure.sparsity(model) == pytest.approx(54 / (108 + 288))
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(x), other(x))


def test_make_permanent_keeps_the_zeros_and_the_function():
    model = masked()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    make_permanent(model)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert torch.equal(model(x), before)
    assert int((model[0].weight == 0).sum()) == 54


def test_the_log_is_plain_and_private():
    model = nn.Linear(2, 2)
    record(model, "mask", layers={"": [2, 2]}, pair=(1, 2))
    surgery_log(model).clear()
    assert surgery_log(model) == [{"verb": "mask", "layers": {"": [2, 2]}, "pair": [1, 2]}]
    with pytest.raises(TypeError):
        record(model, "bad", thing=object())
    replace_log(model, [])
    assert surgery_log(model) == []


def test_a_wrong_base_is_refused_by_name_and_shape():
    model = masked()
    check_shapes(model, {"0": [4, 3, 3, 3]}, "mask")
    with pytest.raises(ModelError, match=r'Layer "0" has a weight of shape \[4, 3, 3, 3\]'):
        check_shapes(model, {"0": [8, 3, 3, 3]}, "mask")
    with pytest.raises(ModelError, match="no such layer"):
        check_shapes(model, {"stem": [4, 3, 3, 3]}, "mask")


def test_freeze():
    model = freeze(masked())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
