"""Objectives with a teacher within a training: what is added up, determinism, resuming, what stays untouched."""

import copy
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from toys import cut_off, tiny_data, two_maps_net

from compress_aug.augment import RandAugment, TeacherFilter
from compress_aug.batch import Batch
from compress_aug.distill import (
    Attention,
    Directions,
    Distillation,
    Mutual,
    OnlineMutualLearning,
    Relations,
    ii_kd_terms,
    kd_svd_loss,
    mutual_loss,
    rkd_loss,
)
from compress_aug.distill.singular_vectors import aligned_vectors
from compress_aug.distill.taps import positions
from compress_aug.errors import ModelError
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import quantize
from compress_aug.surgery import copy_model, freeze
from compress_aug.training import Settings, Training, build_optimizer, fit

DATA = tiny_data(train=48, validation=8)
PLAIN = Settings(epochs=2, batch_size=16, precision="float32", lr=0.05)
STEPS = 3


def net(width=6, seed=0):
    return two_maps_net(width, seed)


def teacher():
    model = net(8, seed=1)
    with torch.no_grad():
        model(torch.rand(16, 3, 8, 8))
    return freeze(model)


def ii_kd():
    return ii_kd_terms(Relations(), Attention(heads=2, epochs=0.5, reduction="sum"), Directions("sum"))


OBJECTIVES = {
    "dml": lambda known: Distillation(known, [Mutual()]),
    "dml_online": lambda known: OnlineMutualLearning(known, lambda p: build_optimizer(p, PLAIN)),
    "rkd": lambda known: Distillation(known, [Relations()], weight=lambda p: 0.02),
    "rkd pooled": lambda known: Distillation(known, [Relations(embedding="pooled")], weight=lambda p: 0.02),
    "mhgd": lambda known: Distillation(known, [Attention(heads=2, epochs=0.5)]),
    "mhgd random": lambda known: Distillation(known, [Attention(heads=2, attention="random")]),
    "kd_svd": lambda known: Distillation(known, [Directions()]),
    "ii_kd": lambda known: Distillation(known, ii_kd(), clip="post_clip", seed=5),
}
NAMES = pytest.mark.parametrize("name", OBJECTIVES)


def training_of(objective, model=None, settings=PLAIN, **more):
    fabric = Fabric(accelerator="cpu", devices=1)
    return Training(model or net(), DATA, objective, settings, seed=3, fabric=fabric, **more)


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def batch_of(count=8):
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch((255 * images).byte(), torch.arange(count) % 4, torch.arange(count), inputs=images)


# ---------------------------------------------------------------- what is added up


def test_cross_entropy_and_each_term_times_the_weight():
    known, student, batch = teacher(), net(), batch_of()
    objective = Distillation(
        known, [Mutual(), Relations(), Directions("sum")], lambda p: 1 - p, label_smoothing=0.1
    )
    objective.bind(student, batch.inputs[:1])
    objective.advance(0.25)
    logits = student(batch.inputs)
    losses = objective.loss(batch, logits)

    answer = known(batch.inputs)
    adapters = list(objective.parameters())
    ours, theirs = [], []
    for cut, adapter in zip((3, 6), adapters, strict=True):
        # The student once more, in training mode as before, and up to the tap.
        pair = positions(student[:cut](batch.inputs)) @ adapter.T, positions(known[:cut](batch.inputs))
        vectors = aligned_vectors(*pair)
        ours.append(vectors[0])
        theirs.append(vectors[1])
    expected = {
        "cross_entropy": functional.cross_entropy(logits, batch.targets, label_smoothing=0.1),
        "dml": 0.75 * mutual_loss(logits, answer),
        "rkd": 0.75 * rkd_loss(logits, answer),
        "kd_svd": 0.75 * kd_svd_loss(ours, theirs, "sum"),
    }
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value.item(), rel=1e-4), key
    objective.close()


def test_the_weight_is_halved_after_each_30_percent_by_default():
    objective, batch, logits = Distillation(teacher(), [Mutual()]), batch_of(), torch.zeros(8, 4)
    found = []
    for progress in (0.0, 0.29, 0.3, 0.61, 0.9, 0.99):
        objective.advance(progress)
        found.append(objective.loss(batch, logits)["dml"].item())
    assert [value / found[0] for value in found] == pytest.approx([1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 8])


def test_two_terms_of_a_name_would_hide_each_other():
    with pytest.raises(ValueError, match="a name of its own"):
        Distillation(teacher(), [Relations(), Relations(embedding="pooled")])
    with pytest.raises(ValueError, match="found none"):
        Distillation(teacher(), [])


def test_other_classes_are_told():
    objective = Distillation(teacher(), [Mutual()])
    with pytest.raises(ModelError, match=r"\[8, 4\] where the student's is \[8, 10\]"):
        objective.loss(batch_of(), torch.zeros(8, 10))


def test_online_the_teacher_moves_first_then_the_student_listens():
    """One step against the same by hand."""
    known, student, batch = teacher(), net(), batch_of()
    before = copy.deepcopy(known.state_dict())
    objective = OnlineMutualLearning(known, lambda p: torch.optim.SGD(p, lr=0.1), lambda p: 0.5)
    logits = student(batch.inputs)
    losses = objective.loss(batch, logits)

    copied = copy.deepcopy(known).train().requires_grad_(True)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
    answer = copied(batch.inputs)
    hard = functional.cross_entropy(answer, batch.targets)
    (hard + 0.5 * mutual_loss(answer, logits.detach())).backward()
    optimizer.step()
    # Its norms have seen the batch once, though it is asked twice.
    assert torch.allclose(weights(objective.teacher), weights(copied), atol=1e-6)
    expected = 0.5 * mutual_loss(logits, copied(batch.inputs).detach())
    assert losses["dml"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in known.state_dict().items())


def test_online_the_teacher_follows_the_learning_rate():
    objective = OBJECTIVES["dml_online"](teacher())
    training = training_of(objective)
    fit(training)
    assert objective._optimizer.param_groups[0]["lr"] == training.optimizer.param_groups[0]["lr"] < PLAIN.lr


@pytest.mark.parametrize("mode", ["post_clip", "pre_clip", "off"])
def test_the_clip_within_a_training_is_that_of_the_function(mode):
    weight = 0.3
    settings = Settings(
        epochs=1, batch_size=48, precision="float32", lr=0.05, momentum=0.0, nesterov=False, weight_decay=0.0
    )
    known = teacher()
    objective = Distillation(known, [Relations()], lambda p: weight, clip=mode)
    start, model = net(), net()
    training = training_of(objective, model, settings)
    fit(training)

    start = start.to(memory_format=torch.channels_last)
    batch = next(iter(DATA.train.batches(48, order_seed=0)))
    inputs = DATA.normalise(batch.images).contiguous(memory_format=torch.channels_last)
    logits = start(inputs)
    own = list(start.parameters())
    task = torch.autograd.grad(functional.cross_entropy(logits, batch.targets), own, retain_graph=True)
    taught = torch.autograd.grad(rkd_loss(logits, known(inputs)), own)
    for was, parameter, a, b in zip(own, model.parameters(), task, taught, strict=True):
        given = weight * b if mode == "pre_clip" else b
        clipped = given * min(1.0, (0.5 * a.norm() / given.norm()).item())
        step = a + (weight * clipped if mode == "post_clip" else clipped)
        assert torch.allclose(parameter, was - 0.05 * step, atol=1e-5)


# ---------------------------------------------------------------- within a training


@NAMES
def test_a_training_leaves_teacher_and_student_as_they_should_be(name):
    known = teacher()
    before = copy.deepcopy(known.state_dict())
    model = net()
    training = training_of(OBJECTIVES[name](known), model)
    history = fit(training)
    finished = training.finished_model()
    assert all(torch.equal(value, before[key]) for key, value in known.state_dict().items())
    assert not known.training and not any(p.requires_grad for p in known.parameters())
    assert finished.state_dict().keys() == net().state_dict().keys()
    for module in (*finished.modules(), *known.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks
    copy_model(finished)
    for row in history:
        parts = row["losses"]
        assert next(iter(parts)) == "cross_entropy" and len(parts) >= 2
        assert sum(parts.values()) == pytest.approx(row["loss"], rel=1e-5)
        assert all(math.isfinite(value) for value in parts.values())


@NAMES
def test_the_same_seed_gives_the_same_model(name):
    models = []
    for noise in (1, 2):
        known = teacher()
        torch.manual_seed(noise)  # whatever was drawn before must not matter
        training = training_of(OBJECTIVES[name](known))
        fit(training)
        models.append(weights(training.finished_model()))
    assert torch.equal(*models)


# With mhgd and ii_kd the heads are trained for 3 steps first, after which the student takes 6.
STOPS = {"mhgd": (1, 2, 3, 7), "ii_kd": (1, 4), "kd_svd": (2, 3), "dml_online": (2,), "rkd pooled": (4,)}


@pytest.mark.parametrize(("name", "stop"), [(name, stop) for name, stops in STOPS.items() for stop in stops])
def test_paused_anywhere_and_resumed_it_ends_the_same(name, stop, tmp_path):
    def started():
        return training_of(OBJECTIVES[name](teacher()))

    whole = started()
    history = fit(whole)
    cut_off(started(), stop, tmp_path / "training.pt")
    torch.manual_seed(999)
    second = started()
    resumed = fit(second, checkpoint=tmp_path / "training.pt")
    assert torch.equal(weights(whole.finished_model()), weights(second.finished_model()))
    assert [row["losses"] for row in resumed] == [row["losses"] for row in history]


def test_heads_are_trained_once_before_the_student_moves():
    attention = Attention(heads=2, epochs=0.5)
    model = net()
    start = weights(model)
    training = training_of(Distillation(teacher(), [attention]), model)
    first = copy.deepcopy(attention.heads.state_dict())
    seen = []

    def pause(training):
        seen.append(attention._done)
        return attention._done == 2

    assert not training.epoch(pause) and seen == [1, 2]
    assert torch.equal(weights(model), start)
    assert training.epoch()
    trained = attention.heads.state_dict()
    assert not torch.equal(first["pairs.0.sender.weight"], trained["pairs.0.sender.weight"])
    assert attention._done == STEPS == attention.steps(PLAIN.epochs, STEPS)
    assert not attention.heads.training
    kept = copy.deepcopy(trained)
    training.epoch()
    assert all(torch.equal(value, kept[key]) for key, value in attention.heads.state_dict().items())


def test_adapters_learn_and_stay_behind():
    objective = Distillation(teacher(), [Directions()])
    training = training_of(objective)
    before = [adapter.detach().clone() for adapter in objective.parameters()]
    assert [tuple(adapter.shape) for adapter in before] == [(8, 6), (16, 12)]
    fit(training)
    moved = [bool((a - b).abs().max() > 1e-6) for a, b in zip(before, objective.parameters(), strict=True)]
    assert moved == [True, True]
    assert sum(value.numel() for value in training.finished_model().parameters()) == sum(
        value.numel() for value in net().parameters()
    )


def test_adapters_learn_when_gradients_are_clipped_too():
    objective = Distillation(teacher(), [Directions("sum")], clip="post_clip")
    training = training_of(objective)
    before = [adapter.detach().clone() for adapter in objective.parameters()]
    fit(training)
    for a, b in zip(before, objective.parameters(), strict=True):
        assert (a - b).abs().max() > 1e-5


IMITATED = {
    "dml": (Mutual, 1.0),
    "rkd": (Relations, 0.05),
    "mhgd": (lambda: Attention(heads=2, epochs=0.5), 1.0),
    "kd_svd": (Directions, 3.0),
}


@pytest.mark.parametrize("name", IMITATED)
def test_a_student_that_is_taught_imitates_more(name):
    make, weight = IMITATED[name]
    known, last = teacher(), {}
    for share in (1e-7, weight):
        objective = Distillation(known, [make()], lambda p, share=share: share)
        settings = Settings(epochs=8, batch_size=16, precision="float32", lr=0.05)
        history = fit(training_of(objective, net(8, seed=2), settings))
        last[share] = history[-1]["losses"][name] / share
    assert last[weight] < 0.85 * last[1e-7]


@pytest.mark.parametrize("name", ["rkd", "ii_kd", "dml_online"])
def test_losses_are_float32_in_a_bf16_training(name):
    kinds = set()
    objective = OBJECTIVES[name](teacher())
    computed = objective.loss

    def spy(batch, logits):
        assert logits.dtype == torch.bfloat16
        losses = computed(batch, logits)
        kinds.update(part.dtype for part in losses.values())
        return losses

    objective.loss = spy
    history = fit(training_of(objective, settings=Settings(epochs=1, batch_size=16, precision="bf16")))
    assert kinds == {torch.float32} and math.isfinite(history[-1]["loss"])


@pytest.mark.parametrize("scheme", ["integer", "dorefa"])
def test_a_quantized_student_learns(scheme):
    images = DATA.normalise(next(iter(DATA.train.batches(16))).images)
    model = quantize(
        net(), images[:1], scheme=scheme, weights=4, activations=4, calibration=[images], batch_norm="keep"
    )
    names = list(model.state_dict())
    training = training_of(OBJECTIVES["ii_kd"](teacher()), model)
    history = fit(training)
    assert all(value > 0 for row in history for value in row["losses"].values())
    assert list(training.finished_model().state_dict()) == names


def test_masks_stay():
    model = mask_smallest(net(), 0.5)
    zeros = {
        name: module.weight_mask.clone()
        for name, module in model.named_modules()
        if hasattr(module, "weight_mask")
    }
    training = training_of(OBJECTIVES["ii_kd"](teacher()), model)
    fit(training)
    finished = training.finished_model()
    for name, mask in zeros.items():
        module = finished.get_submodule(name)
        assert torch.equal(module.weight_mask, mask) and module.weight[mask == 0].eq(0).all()


@pytest.mark.parametrize("name", ["dml", "ii_kd", "dml_online"])
def test_the_teachers_filter_goes_with_it(name):
    """The filter's answer is used where no map is needed; where one is, the teacher is asked about what was chosen."""
    known = teacher()
    augment = TeacherFilter(RandAugment(random_magnitude=True), known, candidates=2)
    training = training_of(OBJECTIVES[name](known), augment=augment, magnitude=lambda p: 9)
    asked = []
    handle = known.register_forward_hook(lambda module, inputs, output: asked.append(torch.is_grad_enabled()))
    training.epoch()
    handle.remove()
    heads = STEPS if name == "ii_kd" else 0
    assert len(asked) - heads == STEPS * (3 if name == "ii_kd" else 2)
    assert math.isfinite(training.history[0]["loss"])


def bare(seed=0):
    """Without norms, so that halves of a batch do to it what the whole does."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def averaging(kind):
    """Objectives whose losses are means over images, for any part of a batch."""
    if kind == "online":
        known = bare(seed=1)
        return OnlineMutualLearning(known, lambda p: build_optimizer(p, PLAIN))
    terms = [Mutual(), Directions(), Attention(heads=2, epochs=0.5)]
    # What heads see of each other's images differs between halves and the whole: asked, but without weight.
    terms[2].loss = lambda seen, loss=terms[2].loss: 0 * loss(seen)
    return Distillation(teacher(), terms, clip=kind)


def trained(fabric, kind):
    """Student, and whatever was trained beside it, after an epoch."""
    objective = averaging(kind)
    settings = Settings(epochs=1, batch_size=16, precision="float32", lr=0.05)
    training = Training(bare(), DATA, objective, settings, seed=3, fabric=fabric)
    training.epoch()
    values = [*training.model.parameters()]
    if kind == "online":
        values += objective.teacher.parameters()
    else:
        values += [*objective.parameters(), *objective.terms[2].heads.parameters()]
    return torch.cat([value.detach().flatten() for value in values])


def _compare(fabric, expected):
    for kind, alone in expected.items():
        found = trained(fabric, kind)
        assert torch.allclose(found, alone, rtol=1e-4, atol=1e-5), (kind, (found - alone).abs().max())
    # Otherwise its threads may still run while the process ends, which aborts it now and then.
    fabric.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_do_what_one_does():
    one = Fabric(accelerator="cpu", devices=1)
    expected = {kind: trained(one, kind) for kind in (None, "post_clip", "online")}
    assert not torch.allclose(expected[None], expected["post_clip"], atol=1e-5)
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(_compare, expected)
