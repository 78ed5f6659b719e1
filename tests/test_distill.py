"""Soft labels against the formula written out by hand."""

import math

import pytest
import torch
from torch import nn

from compress_aug.batch import Batch
from compress_aug.distill import SoftLabels, soft_label_loss


def test_two_classes_by_hand():
    tau = 2.0
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p = 1 / (1 + math.exp(-2.0 / tau))
    q = 1 / (1 + math.exp(1.0 / tau))
    expected = tau**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert soft_label_loss(student, teacher, tau).item() == pytest.approx(expected, rel=1e-6)


def test_zero_for_equal_logits_and_mean_over_the_batch():
    torch.manual_seed(0)
    a, b = torch.randn(6, 10), torch.randn(6, 10)
    assert soft_label_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    one_by_one = torch.stack([soft_label_loss(a[n : n + 1], b[n : n + 1]) for n in range(6)])
    assert soft_label_loss(a, b).item() == pytest.approx(one_by_one.mean().item(), rel=1e-5)


def test_gradient_hardly_depends_on_a_large_temperature():
    """That is what the square of the temperature is for."""
    torch.manual_seed(0)
    teacher = torch.randn(4, 10)
    norms = []
    for tau in (20.0, 40.0):
        student = torch.zeros(4, 10, requires_grad=True)
        soft_label_loss(student, teacher, tau).backward()
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_no_gradient_reaches_the_teacher_and_half_precision_is_safe():
    teacher = torch.randn(4, 10, requires_grad=True)
    student = (torch.randn(4, 10) * 100).to(torch.bfloat16).requires_grad_(True)
    loss = soft_label_loss(student, teacher)
    loss.backward()
    assert teacher.grad is None and loss.dtype == torch.float32 and torch.isfinite(loss)


def _batch():
    torch.manual_seed(0)
    images = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    return Batch(images, torch.arange(8) % 3, torch.arange(8), inputs=torch.randn(8, 3, 4, 4))


def test_the_objective_weighs_its_parts_and_follows_its_schedule():
    batch = _batch()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    objective = SoftLabels(teacher, weight=lambda progress: 1 - progress, temperature=3.0)
    logits = torch.randn(8, 3)
    hard = nn.functional.cross_entropy(logits, batch.targets).item()
    soft = soft_label_loss(logits, teacher(batch.inputs), 3.0).item()
    for progress in (0.0, 0.25, 1.0):
        objective.advance(progress)
        losses = objective.loss(batch, logits)
        assert losses["cross_entropy"].item() == pytest.approx(progress * hard, rel=1e-5)
        assert losses["soft_labels"].item() == pytest.approx((1 - progress) * soft, rel=1e-5)


def test_the_teacher_is_frozen_and_its_answer_is_reused():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).train()
    objective = SoftLabels(teacher)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    batch = _batch()
    given = Batch(batch.images, batch.targets, batch.index, teacher_logits=torch.zeros(8, 3))
    logits = torch.zeros(8, 3)
    assert objective.loss(given, logits)["soft_labels"].item() == 0.0
    with pytest.raises(ValueError, match=r"batch\.inputs"):
        objective.loss(Batch(batch.images, batch.targets, batch.index), logits)
