"""Freezing late in a training: against a hand-written loop, bit-equal after a stop, then what moves and what not."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from toys import tiny_data, tiny_net

from compress_aug.errors import RecipeError
from compress_aug.quantization import learned_scales, quantize
from compress_aug.training import Settings, Training, build_optimizer, fit, mixed_seed

# 64 images: 4 steps of 16 an epoch.
DATA = tiny_data()
SETTINGS = Settings(epochs=2, batch_size=16, lr=0.05, lr_schedule="constant", precision="float32")


def quantized_net():
    """Five learned scales, and a batch norm that cannot be folded because it follows an activation."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    images = DATA.normalise(next(DATA.train.batches(32)).images)
    return quantize(net, images[:1], weights=4, activations=4, calibration=[images])


def training_of(model, settings=SETTINGS, **more):
    return Training(
        model, DATA, settings=settings, seed=3, fabric=Fabric(accelerator="cpu", devices=1), **more
    )


def norm_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


class Diary:
    """Scales, statistics and weights before each step and after the last one."""

    def __init__(self):
        self.scales, self.statistics, self.weights = [], [], []

    def __call__(self, model, progress):
        self.scales.append(torch.stack([scale.detach().clone() for scale in learned_scales(model)]))
        self.statistics.append(norm_of(model).running_mean.clone())
        self.weights.append(model.get_parameter("0.weight").detach().clone())


def moved(values):
    """At which steps a value was another one after the step than before."""
    return [step for step, (a, b) in enumerate(pairwise(values)) if not torch.equal(a, b)]


def test_batch_norms_of_a_float_model_freeze_as_in_a_bare_loop():
    """Also where something between two steps sets the mode, as a teacher's filter does when it asks the student."""
    settings = replace(SETTINGS, freeze_batch_norm=0.5)
    model = tiny_net()

    def asks(batch, magnitude, epoch, seed):
        model.eval()
        model.train()
        return batch

    fit(training_of(model, settings, augment=asks))

    bare = tiny_net().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(bare.parameters(), settings)
    bare.train()
    for epoch in range(2):
        for norm in (bare[1], bare[4]):
            norm.train(epoch < 1)
        for batch in DATA.train.batches(16, order_seed=mixed_seed(3, "order", epoch), drop_last=True):
            inputs = DATA.normalise(batch.images).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(bare(inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(weights(model), weights(bare))


@pytest.mark.parametrize("stop_after", [2, 5, 7])
def test_stopped_before_between_and_after_the_freezing_it_ends_the_same(tmp_path, stop_after):
    settings = replace(SETTINGS, freeze_batch_norm=0.5, freeze_scales=0.75)
    whole = training_of(quantized_net(), settings)
    fit(whole)
    first, seen = training_of(quantized_net(), settings), []

    def pause(training):
        seen.append(training)
        return len(seen) == stop_after

    while first.epochs_done < 2 and first.epoch(pause):
        pass
    torch.save(first.state_dict(), tmp_path / "training.pt")
    second = training_of(quantized_net(), settings)
    fit(second, checkpoint=tmp_path / "training.pt")
    assert torch.equal(weights(whole.finished_model()), weights(second.finished_model()))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_from_their_share_on_scales_and_statistics_stay_and_weights_move_on(optimizer):
    model, diary = quantized_net(), Diary()
    # Decay and momentum would both go on without a gradient.
    settings = replace(
        SETTINGS,
        optimizer=optimizer,
        lr=0.01,
        weight_decay=0.1,
        clip_norm=1.0,
        freeze_batch_norm=0.5,
        freeze_scales=0.75,
    )
    fit(training_of(model, settings, on_step=diary))
    diary(model, 1.0)
    assert moved(diary.weights) == list(range(8))
    assert moved(diary.statistics) == [0, 1, 2, 3]
    assert moved(diary.scales) == [0, 1, 2, 3, 4, 5]

    free = Diary()
    never = replace(settings, freeze_batch_norm=1.0, freeze_scales=1.0)
    fit(training_of(quantized_net(), never, on_step=free))
    assert torch.equal(torch.stack(free.scales)[:5], torch.stack(diary.scales)[:5])
    assert moved(free.scales) == moved(free.statistics) == list(range(7))


def test_unasked_a_quantized_model_freezes_late_and_a_float_one_never():
    said, diary, settings = [], Diary(), replace(SETTINGS, epochs=5, lr_schedule="cosine")
    fit(training_of(quantized_net(), settings, on_step=diary, note=said.append))
    assert moved(diary.statistics) == list(range(16)) and moved(diary.scales) == list(range(18))
    assert any("batch-norm statistics stay as they are from 80 %" in line for line in said)
    assert any("learned scales stay as they are from 90 %" in line for line in said)

    said.clear()
    training_of(quantized_net(), replace(settings, lr_schedule="constant"), note=said.append)
    assert not any("stay" in line for line in said), "a large lr needs the statistics of its batch"
    model, means = tiny_net(), []
    fit(
        training_of(
            model, settings, on_step=lambda m, p: means.append(m[1].running_mean.clone()), note=said.append
        )
    )
    assert moved(means) == list(range(19))
    assert not any("stay" in line or "freeze" in line for line in said)


@pytest.mark.parametrize(
    ("key", "told"),
    [("freeze_scales", "no learned scales"), ("freeze_batch_norm", "no batch-norm statistics")],
)
def test_nothing_to_freeze_is_told_in_one_line(key, told):
    said = []
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 4))
    training_of(net, replace(SETTINGS, **{key: 0.5}), note=said.append)
    assert [line for line in said if key in line] == [
        f"{key}: 0.5 changes nothing, because the model has {told}"
    ]


@pytest.mark.parametrize("share", [-0.1, 90])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(RecipeError, match=r"freeze_scales must be a share of the training in \[0, 1\]"):
        training_of(quantized_net(), replace(SETTINGS, freeze_scales=share))


def test_the_finished_model_is_in_one_mode():
    data = replace(DATA, validation=tiny_data(validation=0).validation)
    training = Training(
        tiny_net(),
        data,
        settings=replace(SETTINGS, freeze_batch_norm=0.0),
        fabric=Fabric(accelerator="cpu", devices=1),
    )
    fit(training)
    model = training.finished_model()
    assert {module.training for module in model.modules()} == {model.training}


def test_scales_are_found_wherever_brevitas_learns_them_and_never_decay():
    from brevitas import nn as brevitas_nn
    from brevitas.quant import Int8WeightPerChannelFloat

    own = brevitas_nn.QuantConv2d(
        4, 3, 3, weight_quant=Int8WeightPerChannelFloat, weight_scaling_impl_type="parameter_from_stats"
    )
    model = quantized_net()
    ours = learned_scales(model)
    assert len(ours) == 5 and all(scale.ndim == 0 for scale in ours)
    both = learned_scales(nn.Sequential(model, own, model))
    assert len(both) == 6 and tuple(both[-1].shape) == (3, 1, 1, 1)
    assert not any(scale is own.weight for scale in both)

    optimizer = training_of(nn.Sequential(model, own)).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(scale)] for scale in both} == {0.0}
    assert decay[id(own.weight)] == SETTINGS.weight_decay > 0
