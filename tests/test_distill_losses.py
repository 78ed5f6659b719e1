"""Losses between teacher and student against formulas in loops, singular vectors against torch.linalg."""

import math

import pytest
import torch
from torch.nn import functional

from compress_aug.distill import (
    AttentionHeads,
    aligned_vectors,
    backward_clipped,
    clip_to_task,
    kd_svd_loss,
    mhgd_loss,
    mutual_loss,
    positions,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    singular_vectors,
    soft_label_loss,
)


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def maps(*shape, seed=0, dtype=torch.float32):
    """As a ReLU leaves them."""
    return (drawn(*shape, seed=seed, dtype=dtype) + 0.5).relu()


def huber(difference):
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


# ---------------------------------------------------------------- outputs


def test_soft_labels_without_the_square_are_smaller_by_it():
    a, b = drawn(6, 10), drawn(6, 10, seed=1)
    plain = soft_label_loss(a, b, 3.0, squared=False)
    assert soft_label_loss(a, b, 3.0).item() == pytest.approx(9 * plain.item(), rel=1e-6)


def test_mutual_learning_by_hand():
    student, teacher = drawn(3, 4), drawn(3, 4, seed=1)

    def softmax(row):
        exps = [math.exp(value) for value in row]
        return [value / sum(exps) for value in exps]

    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(ours), softmax(theirs)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert mutual_loss(student, teacher).item() == pytest.approx(total / 2 / 3, rel=1e-5)


def test_mutual_learning_teaches_the_first_alone():
    student, teacher = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    mutual_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


# ---------------------------------------------------------------- relations


def distances_by_loops(rows):
    found = [[math.dist(a, b) for b in rows] for a in rows]
    positive = [d for row in found for d in row if d > 0]
    mean = sum(positive) / len(positive)
    return [[d / mean for d in row] for row in found]


def test_distances_by_loops():
    student, teacher = drawn(5, 3), drawn(5, 7, seed=1)
    ours, theirs = (distances_by_loops(rows.tolist()) for rows in (student, teacher))
    expected = sum(huber(ours[i][j] - theirs[i][j]) for i in range(5) for j in range(5)) / 25
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def cosine_by_loops(rows, i, j, k):
    one, two = ([b - a for a, b in zip(rows[i], rows[n], strict=True)] for n in (j, k))
    lengths = math.hypot(*one), math.hypot(*two)
    if min(lengths) == 0:
        return 0.0
    return sum(a * b for a, b in zip(one, two, strict=True)) / lengths[0] / lengths[1]


def test_angles_by_loops():
    student, teacher = drawn(4, 3), drawn(4, 6, seed=1)
    triples = [(i, j, k) for i in range(4) for j in range(4) for k in range(4)]
    ours, theirs = ([cosine_by_loops(rows.tolist(), *t) for t in triples] for rows in (student, teacher))
    expected = sum(huber(a - b) for a, b in zip(ours, theirs, strict=True)) / 64
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_relations_are_weighed_and_normalised():
    student, teacher = drawn(6, 5), drawn(6, 5, seed=1)
    a, b = functional.normalize(student), functional.normalize(teacher)
    expected = 50 * rkd_distance_loss(a, b) + 100 * rkd_angle_loss(a, b)
    assert rkd_loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)
    raw = rkd_loss(student, teacher, distance=0, angle=2, normalise=False)
    assert raw.item() == pytest.approx(2 * rkd_angle_loss(student, teacher).item(), rel=1e-6)


def test_equal_rows_give_no_gradient():
    student = torch.ones(4, 5, requires_grad=True)
    loss = rkd_loss(student, drawn(4, 5))
    loss.backward()
    assert loss.isfinite() and student.grad.eq(0).all()
    # Two equal rows among others: finite, and both are moved the same way by the rest.
    some = drawn(4, 5)
    some[1] = some[0]
    some.requires_grad_()
    rkd_loss(some, drawn(4, 5, seed=1)).backward()
    assert some.grad.isfinite().all() and some.grad.abs().max() < 1e3


@pytest.mark.parametrize("normalise", [True, False])
def test_the_smaller_the_rows_the_longer_the_gradient_of_relations(normalise):
    """The loss does not see the scale: what weights that suit large answers do to small ones is why it is clipped."""
    teacher, lengths, losses = drawn(6, 5, seed=1), [], []
    for scale in (1.0, 0.01):
        student = (scale * drawn(6, 5)).requires_grad_()
        loss = rkd_loss(student, teacher, normalise=normalise)
        (gradient,) = torch.autograd.grad(loss, student)
        losses.append(loss.item())
        lengths.append(gradient.norm().item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert lengths[1] == pytest.approx(100 * lengths[0], rel=1e-2)


def test_relations_gradient():
    student, teacher = drawn(4, 3, seed=2), drawn(4, 3, seed=3)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(rkd_loss(student, teacher), student)
    step = 1e-3 * drawn(4, 3, seed=4)
    with torch.no_grad():
        moved = rkd_loss(student + step, teacher) - rkd_loss(student - step, teacher)
    assert (2 * gradient * step).sum().item() == pytest.approx(moved.item(), rel=2e-2)


# ---------------------------------------------------------------- singular vectors


def by_svd(values, number):
    right = torch.linalg.svd(values, full_matrices=False)[2].mT[:, :, :number]
    return right * torch.where(right.detach().sum(1, keepdim=True) < 0, -1.0, 1.0)


@pytest.mark.parametrize("shape", [(3, 20, 6), (3, 6, 20), (2, 7, 7)])
def test_singular_vectors_are_those_of_torch_and_so_is_their_gradient(shape):
    values = maps(*shape, dtype=torch.float64)
    pull = drawn(shape[0], shape[2], 2, seed=1, dtype=torch.float64)
    gradients = []
    for function in (lambda given: singular_vectors(given, 2, 0.0), lambda given: by_svd(given, 2)):
        given = values.clone().requires_grad_()
        vectors = function(given)
        (vectors * pull).sum().backward()
        gradients.append((vectors.detach(), given.grad))
    (ours, our_gradient), (theirs, their_gradient) = gradients
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert torch.allclose(our_gradient, their_gradient, rtol=1e-6, atol=1e-9)
    assert torch.autograd.gradcheck(lambda given: singular_vectors(given, 2, 0.0), values.requires_grad_())


@pytest.mark.parametrize("shape", [(6, 64, 16), (6, 16, 32)])
def test_the_bound_hardly_changes_the_gradient_of_the_first_vector(shape):
    values = maps(*shape)
    pull = drawn(shape[0], shape[2], 1, seed=1)
    ours, theirs = values.clone().requires_grad_(), values.double().requires_grad_()
    (singular_vectors(ours) * pull).sum().backward()
    (by_svd(theirs, 1) * pull).sum().backward()
    assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm()


@pytest.mark.parametrize("shape", [(4, 36, 12), (4, 9, 32), (4, 4, 8)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_dead_channels_and_empty_maps_have_finite_gradients(shape, size):
    values = size * maps(*shape)
    values[:, :, :3] = 0  # dead channels
    values[1] = 0  # an empty map
    values[2] = values[2, :, 5:6]  # one direction, and nothing else
    values[3, :, 4:] = size * torch.eye(shape[1], shape[2] - 4)  # equal singular values
    values.requires_grad_()
    vectors = singular_vectors(values, 4)
    (vectors * drawn(*vectors.shape, seed=1)).sum().backward()
    assert vectors.isfinite().all() and values.grad.isfinite().all()
    assert values.grad[1].eq(0).all() and values.grad[0].abs().sum() > 0


def test_what_is_not_a_number_has_vectors_all_the_same():
    values = maps(2, 9, 4)
    values[0, 0, 0], values[1, 0, 0] = math.nan, math.inf
    values.requires_grad_()
    vectors = singular_vectors(values, 2)
    vectors.pow(3).sum().backward()
    assert vectors.isfinite().all() and values.grad.isfinite().all()


def test_alignment_takes_the_most_alike_with_its_sign():
    student, teacher = drawn(5, 20, 6), drawn(5, 12, 6, seed=1)
    ours, theirs = aligned_vectors(student, teacher)
    for n in range(5):
        right = torch.linalg.svd(student[n])[2][:4]
        main = torch.linalg.svd(teacher[n])[2][0]
        likeness = right @ main
        best = likeness.abs().argmax()
        assert torch.allclose(
            ours[n] * theirs[n].dot(main).sign(), right[best] * likeness[best].sign(), atol=1e-4
        )
    assert (ours * theirs).sum(1).min() >= 0


def test_few_positions_leave_fewer_vectors_to_choose_from():
    ours, theirs = aligned_vectors(maps(3, 2, 6), maps(3, 2, 6))
    assert torch.allclose(ours, theirs) and ours.shape == (3, 6)


# ---------------------------------------------------------------- KD-SVD


def levels(seed, widths=(3, 5, 4), count=3):
    return [functional.normalize(drawn(count, width, seed=seed + width)) for width in widths]


def test_kd_svd_by_loops():
    student, teacher = levels(0), levels(10)
    total = 0.0
    for place in (1, 2):
        for n in range(3):
            for i in range(student[place].shape[1]):
                for j in range(student[place - 1].shape[1]):
                    ours, theirs = (
                        math.exp(-((side[place][n, i].item() - side[place - 1][n, j].item()) ** 2) / 8)
                        for side in (student, teacher)
                    )
                    total += (ours - theirs) ** 2
    assert kd_svd_loss(student, teacher, "sum").item() == pytest.approx(total, rel=1e-4)
    assert kd_svd_loss(student, teacher).item() == pytest.approx(total / 3, rel=1e-4)


def test_levels_must_be_the_same_and_more_than_one():
    with pytest.raises(ValueError, match="at least two levels"):
        kd_svd_loss(levels(0)[:1], levels(0)[:1])
    with pytest.raises(ValueError, match="same shapes"):
        kd_svd_loss(levels(0), levels(0)[::-1])


def test_kd_svd_of_whole_maps_is_finite_with_dead_channels():
    """What a step computes, from maps to the gradient."""
    student, teacher = [maps(4, 25, 6), maps(4, 9, 8)], [maps(4, 25, 6, seed=1), maps(4, 9, 8, seed=1)]
    student[0][:, :, 2:5] = 0
    student[1][2] = 0
    for level in student:
        level.requires_grad_()
    pairs = [aligned_vectors(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    kd_svd_loss([ours for ours, _ in pairs], [theirs for _, theirs in pairs]).backward()
    assert all(level.grad.isfinite().all() and level.grad.abs().sum() > 0 for level in student)


# ---------------------------------------------------------------- MHGD


def attention_by_loops(heads, vectors):
    """softmax-free attention of each pair of levels, one entry at a time; norms in eval mode."""
    found = []
    for place, pair in enumerate(heads.pairs):
        earlier, level = vectors[place], vectors[place + 1]
        sent, received = (
            (linear.weight @ side.T).T / math.sqrt(1 + 1e-5)
            for linear, side in ((pair.sender, level), (pair.receiver, earlier))
        )
        count, number = len(level), pair.heads
        graph = torch.empty(number, count, count)
        for head in range(number):
            for row in range(count):
                for column in range(count):
                    graph[head, row, column] = sum(
                        sent[row, d * number + head] * received[column, d * number + head]
                        for d in range(sent.shape[1] // number)
                    )
        found.append(graph)
    return found


def test_mhgd_by_loops():
    student, teacher = levels(0), levels(10)
    heads = AttentionHeads([3, 5, 4], heads=2, seed=4).eval().requires_grad_(False)
    total = 0.0
    for ours, theirs in zip(
        attention_by_loops(heads, student), attention_by_loops(heads, teacher), strict=True
    ):
        for head in range(2):
            for row in range(3):
                q, p = (graph[head, row].tanh().softmax(0).tolist() for graph in (ours, theirs))
                total += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    assert mhgd_loss(heads, student, teacher, "sum").item() == pytest.approx(total, rel=1e-4)
    assert mhgd_loss(heads, student, teacher).item() == pytest.approx(total / 3, rel=1e-4)


def test_heads_have_the_widths_of_the_reference_and_the_same_first_weights():
    pair = AttentionHeads([3, 5], heads=2, seed=1).pairs[0]
    assert pair.sender.weight.shape == (8, 5) and pair.receiver.weight.shape == (8, 3)
    assert pair.values.weight.shape == (4, 3) and pair.guessed.weight.shape == (5, 8)
    assert torch.equal(pair.sender.weight, AttentionHeads([3, 5], heads=2, seed=1).pairs[0].sender.weight)
    assert not torch.equal(pair.sender.weight, AttentionHeads([3, 5], heads=2, seed=2).pairs[0].sender.weight)


def test_heads_learn_to_guess_the_next_level():
    first = functional.normalize(maps(64, 6))
    vectors = [first, functional.normalize((first @ drawn(6, 8, seed=1)).relu() + 0.01)]
    heads = AttentionHeads([6, 8], heads=4).train()
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        loss = heads.estimation_loss(vectors, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_some_heads_are_left_out_and_the_noise_decides_which():
    vectors = levels(0, count=6)
    heads = AttentionHeads([3, 5, 4], heads=8).train()
    one, again, other = (
        heads.estimation_loss(vectors, torch.Generator().manual_seed(seed)).item() for seed in (0, 0, 1)
    )
    assert one == again != other


# ---------------------------------------------------------------- clipped gradients


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_clip_by_hand(epoch):
    taught, task = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]])
    share = 1 / (1 + math.exp(-epoch))
    assert torch.allclose(clip_to_task(taught, task, epoch), taught / 5 * share)
    small = taught / 100
    assert torch.equal(clip_to_task(small, task, epoch), small)
    assert clip_to_task(taught, torch.zeros(1, 2), epoch).eq(0).all()
    assert clip_to_task(torch.zeros(1, 2), task, epoch).eq(0).all()


@pytest.mark.parametrize("mode", ["post_clip", "pre_clip", "off"])
def test_both_gradients_are_joined_tensor_by_tensor(mode):
    layer, adapter = torch.nn.Linear(3, 2), torch.nn.Parameter(drawn(2))
    inputs, weight, epoch = drawn(5, 3), 0.25, 1

    def losses():
        out = layer(inputs)
        return out.square().mean(), (30 * out * adapter).sin().sum() + 0.001 * layer.bias.sum()

    own = list(layer.parameters())
    task = torch.autograd.grad(losses()[0], own)
    taught = torch.autograd.grad(losses()[1], [*own, adapter])
    backward_clipped(*losses(), own, epoch=epoch, weight=weight, lambda_mode=mode, unclipped=[adapter])
    share = 1 / (1 + math.exp(-epoch))
    for parameter, a, b in zip(own, task, taught, strict=False):
        given = weight * b if mode == "pre_clip" else b
        allowed = a.norm() * share
        clipped = given * (allowed / given.norm()) if given.norm() > allowed else given
        expected = a + (weight * clipped if mode == "post_clip" else clipped)
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(adapter.grad, (1.0 if mode == "off" else weight) * taught[2], rtol=1e-5)


def test_a_map_becomes_positions_times_channels():
    features = drawn(2, 3, 4, 5)
    matrix = positions(features.bfloat16())
    assert matrix.shape == (2, 20, 3) and matrix.dtype == torch.float32
    assert torch.equal(positions(features)[1, 2 * 5 + 3], features[1, :, 2, 3])
    tokens = drawn(2, 7, 3)
    assert torch.equal(positions(tokens), tokens)
