"""The loop against a bare hand-written one, then determinism, pausing and resuming, then what it refuses."""

import copy
import math
import signal
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from toys import cut_off

from compress_aug import measure
from compress_aug.augment import RandAugment
from compress_aug.data import load_data
from compress_aug.distill import SoftLabels
from compress_aug.errors import Interrupted, RunFolderError, TrainingError
from compress_aug.precision import choose_precision
from compress_aug.training import Settings, Training, facts_of, fit, lr_factor, mixed_seed


@pytest.fixture(scope="module")
def data():
    return load_data("digits").limited(train=160, test=80)


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


FLOAT = Settings(epochs=2, batch_size=32, precision="float32", lr=0.05)


def training_of(data, settings=FLOAT, model=None, **more):
    fabric = Fabric(accelerator="cpu", devices=1)
    return Training(model or tiny(), data, settings=settings, seed=3, fabric=fabric, **more)


def augmented(data, settings=FLOAT, **more):
    return training_of(data, settings, augment=RandAugment(crop_padding=2), magnitude=lambda p: 9, **more)


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_equals_a_bare_loop(data):
    """SGD with Nesterov momentum, cosine, weight decay on weights only: the same numbers as by hand."""
    training = training_of(data)
    fit(training)
    ours = weights(training.finished_model())

    model = tiny().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    steps = data.train.steps(32, drop_last=True)
    for epoch in range(2):
        torch.manual_seed(mixed_seed(3, "epoch", epoch, 0))
        model.train()
        batches = data.train.batches(32, order_seed=mixed_seed(3, "order", epoch), drop_last=True)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch * steps + step) / (2 * steps))) / 2
            inputs = data.normalise(batch.images).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(ours, weights(model))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data):
    first, second = augmented(data), augmented(data)
    other = Training(
        tiny(),
        data,
        settings=FLOAT,
        seed=4,
        augment=RandAugment(crop_padding=2),
        magnitude=lambda p: 9,
        fabric=Fabric(accelerator="cpu", devices=1),
    )
    for training in (first, second, other):
        fit(training)
    assert torch.equal(weights(first.model), weights(second.model))
    assert not torch.equal(weights(first.model), weights(other.model))


@pytest.mark.parametrize("stop_after", [1, 5, 6, 9])
def test_paused_anywhere_and_resumed_it_ends_the_same(data, tmp_path, stop_after):
    whole = augmented(data)
    history = fit(whole)

    path = tmp_path / "training.pt"
    cut_off(augmented(data), stop_after, path)
    torch.manual_seed(999)  # whatever happened in between must not matter
    second = augmented(data, model=tiny().requires_grad_(True))
    resumed = fit(second, checkpoint=path)
    assert torch.equal(weights(whole.finished_model()), weights(second.finished_model()))
    assert [row["loss"] for row in resumed] == [row["loss"] for row in history]
    assert [row["validation_accuracy"] for row in resumed] == [row["validation_accuracy"] for row in history]


def test_ctrl_c_saves_and_says_where(data, tmp_path, ctrl_c):
    whole = augmented(data)
    fit(whole)
    path = tmp_path / "training.pt"
    steps = 0

    def press(model, progress):
        nonlocal steps
        steps += 1
        if steps == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="epoch 2 of 2"):
        fit(augmented(data, on_step=press), checkpoint=path)
    resumed = augmented(data)
    fit(resumed, checkpoint=path)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler is put back"


def test_best_weights_are_those_of_the_best_epoch(data):
    settings = replace(FLOAT, epochs=4, lr=0.3, lr_schedule="constant", weights="best")
    training = training_of(data, settings)
    snapshots = []
    while training.epochs_done < 4:
        training.epoch()
        snapshots.append(weights(training.model).clone())
    scores = [row["validation_accuracy"] for row in training.history]
    assert torch.equal(weights(training.finished_model()), snapshots[scores.index(max(scores))])


def test_it_learns(data):
    linear = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 64, 10))
    training = training_of(data, replace(FLOAT, epochs=20), model=linear)
    history = fit(training)
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert measure.accuracy(training.finished_model(), data.test.batches(80), data.normalise) > 0.7


def test_the_magnitude_moves_with_progress_and_is_reported(data):
    asked = []

    def magnitude(progress):
        asked.append(progress)
        return round(8 * (1 - progress)) or None

    training = training_of(data, augment=RandAugment(), magnitude=magnitude)
    history = fit(training)
    steps = training.steps_per_epoch
    assert asked == pytest.approx([n / (2 * steps) for n in range(2 * steps)])
    assert history[0]["magnitude"][0] == 8 and history[-1]["magnitude"][1] in (1, None)


def test_on_step_sees_the_model_before_each_step(data):
    seen = []
    training = training_of(data, on_step=lambda model, progress: seen.append((model, progress)))
    fit(training)
    assert [model is training.model for model, _ in seen] == [True] * len(seen)
    assert len(seen) == 2 * training.steps_per_epoch


def test_a_loss_that_is_not_a_number_stops_with_advice(data):
    with pytest.raises(TrainingError, match=r"epoch 1: try a smaller lr \(it was 1e\+20\)"):
        fit(training_of(data, replace(FLOAT, lr=1e20)))


def test_a_state_of_another_training_is_refused(data, tmp_path):
    path = tmp_path / "training.pt"
    torch.save({"something": 1}, path)
    with pytest.raises(RunFolderError, match="is not a state of this training"):
        fit(training_of(data), checkpoint=path)
    path.write_bytes(b"half a file")
    with pytest.raises(RunFolderError):
        fit(training_of(data), checkpoint=path)


def test_an_objective_may_bring_its_own_gradient_and_parameters(data):
    class Own:
        def __init__(self):
            self.extra = nn.Parameter(torch.ones(1))
            self.calls = []

        def parameters(self):
            return [self.extra]

        def loss(self, batch, logits):
            assert batch.inputs is not None
            return {"task": functional.cross_entropy(logits, batch.targets), "pull": (self.extra**2).sum()}

        def backward(self, losses, training):
            self.calls.append(set(losses))
            sum(losses.values()).backward()

        def advance(self, progress):
            self.calls.append(progress)

        def close(self):
            self.calls.append("closed")

    objective = Own()
    training = training_of(data, objective=objective)
    fit(training)
    training.finished_model()
    assert objective.extra.item() < 1
    assert {"task", "pull"} in objective.calls and 0.0 in objective.calls and objective.calls[-1] == "closed"


def test_a_teacher_is_left_as_it_was(data):
    teacher = tiny()
    before = copy.deepcopy(teacher.state_dict())
    training = training_of(data, objective=SoftLabels(teacher, weight=lambda p: 0.7))
    fit(training)
    after = teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_clipping_bounds_the_step(data):
    start = tiny()
    settings = replace(
        FLOAT,
        epochs=1,
        lr=1.0,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        clip_norm=1e-3,
        lr_schedule="constant",
        batch_size=144,
    )
    model = copy.deepcopy(start)
    fit(training_of(data, settings, model=model))
    moved = torch.cat(
        [(a - b).detach().flatten() for a, b in zip(start.parameters(), model.parameters(), strict=True)]
    )
    assert moved.norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "progress", "warmup", "expected"),
    [
        ("constant", 0.7, 0.0, 1.0),
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.5, 0.0, 0.5),
        ("cosine", 0.05, 0.1, 0.5),
        ("cosine", 0.1, 0.1, 1.0),
        ("step", 0.29, 0.0, 1.0),
        ("step", 0.3, 0.0, 0.1),
        ("step", 0.9, 0.0, 1e-3),
    ],
)
def test_lr_factor(schedule, progress, warmup, expected):
    assert lr_factor(schedule, progress, warmup) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_every_optimizer_descends(data, kind):
    training = training_of(data, replace(FLOAT, optimizer=kind, lr=0.05 if kind == "sgd" else 0.01, epochs=5))
    history = fit(training)
    assert history[-1]["loss"] < history[0]["loss"]


def test_precision_is_chosen_with_its_reason():
    cpu = torch.device("cpu")
    assert choose_precision(cpu, "float32").autocast is None
    assert choose_precision(cpu, "bf16").autocast is torch.bfloat16
    assert choose_precision(cpu, quantized=True).autocast is None
    assert "fake quantization" in choose_precision(cpu, quantized=True).reason
    assert not choose_precision(cpu, sample=(1, 28, 28)).channels_last


def test_bf16_trains(data):
    history = fit(training_of(data, replace(FLOAT, precision="bf16", epochs=5)))
    assert history[-1]["loss"] < history[0]["loss"]


def test_facts_are_read_off_the_model():
    model = nn.Sequential(nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        model[0].weight[:3] = 0
    facts = facts_of(model, {"parameters": 400.0})
    assert facts("sparsity") == pytest.approx(0.3)
    assert facts("parameters") == pytest.approx(0.25)
    assert facts("bits") == 32
