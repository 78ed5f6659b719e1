"""What a row's accuracy is measured on, and the word about a training that ends below plain calibration."""

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Export, Keep, Prune, Quantize, Recipe, Train, measure
from compress_aug.quantization import finalize, is_quantized, quantize
from compress_aug.running import judging
from compress_aug.running.judging import accuracies, as_it_will_run, worse_than_calibrated
from compress_aug.surgery import copy_model

DATA = tiny_data()
LEARN = Train(epochs=4, batch_size=16, lr=0.05, precision="float32")
AFTER = Train(epochs=1, batch_size=16, lr=0.001, precision="float32")
CALIBRATE = Quantize(calibrate=32)


def run(stages, out, **keys):
    keys = {"model": tiny_net(), "data": DATA, "device": "cpu", "console": Console(quiet=True), **keys}
    return compress_aug.run(Recipe(stages, name="toy"), out=out, **keys)


def spoiling_fit(training, **keys):
    """A training that leaves a quantized model with nothing: it calls every image by the first class."""
    history = compress_aug.fit(training, **keys)
    if is_quantized(training.model):
        *_, (_, last) = measure.prunable_layers(training.model).items()
        with torch.no_grad():
            last.weight.fill_(1e-3)
            last.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    return history


def without(data, *splits):
    empty = tiny_data(train=0, validation=0, test=0)
    return replace(data, **{name: getattr(empty, name) for name in splits})


def warnings_of(result, stage):
    return [note for note in result.report["stages"][stage]["notes"] if "plain calibration" in note]


def quantized_net():
    images = DATA.normalise(next(DATA.train.batches(32)).images)
    return quantize(tiny_net().eval(), images[:1], calibration=[images])


def test_the_form_that_will_run_is_a_finalized_copy():
    model = quantized_net()
    before = copy_model(model).state_dict()
    judged, reason = as_it_will_run(model)
    assert reason == "" and judged is not model
    expected = finalize(copy_model(model)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in judged.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in judged.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    net = tiny_net()
    assert as_it_will_run(net) == (net, "")


def test_a_row_counts_what_will_run_and_training_goes_on_with_what_was_trained(tmp_path, monkeypatch):
    plain = run([LEARN, CALIBRATE, AFTER], tmp_path / "plain")

    def first_class_only(model):
        for layer in measure.prunable_layers(model).values():
            layer.weight.data.zero_()
        return model

    monkeypatch.setattr(judging, "finalize", first_class_only)
    watched = run([LEARN, CALIBRATE, AFTER], tmp_path / "watched")
    accuracy = [row["accuracy"] for row in watched.report["stages"]]
    assert accuracy[0] == plain.report["stages"][0]["accuracy"] > 0.5
    assert accuracy[1:] == [0.25, 0.25]
    ours, theirs = watched.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_row_is_what_the_file_then_reaches(tmp_path):
    report = run([LEARN, CALIBRATE, AFTER, Export()], tmp_path / "run").report
    assert report["stages"][2]["accuracy"] == report["exports"][0]["model_accuracy"]


def test_what_cannot_be_finalized_is_judged_as_it_is_and_that_is_said():
    model, said = quantized_net(), []
    model.get_submodule("0").bias.data.fill_(1e9)
    found = accuracies(model, DATA, said.append)
    assert found == {"accuracy": measure.accuracy(model, DATA.test.batches(32), DATA.normalise)}
    assert len(said) == 1 and "does not fit 32 bits" in said[0]


def test_a_training_that_ends_below_plain_calibration_is_told(tmp_path):
    told = StringIO()
    console = Console(file=told, width=1000)
    # Directly and later: what is kept or trained in between does not matter.
    stages = [LEARN, CALIBRATE, Keep(name="calibrated"), AFTER, AFTER]
    result = run(stages, tmp_path / "run", fit=spoiling_fit, console=console)
    plain = result.report["stages"][1]["accuracy"]
    assert plain > 0.5 and not warnings_of(result, 1)
    for stage in (3, 4):
        (line,) = warnings_of(result, stage)
        assert f"test accuracy 25.00 % after this training is below the {100 * plain:.2f} %" in line
        assert f"by {round(32 * (plain - 0.25))} of 32 images" in line
        assert all(word in line for word in ("smaller lr", "more epochs", "more bits"))
        assert line in told.getvalue()


def test_nothing_is_told_of_a_good_training_a_float_one_or_a_rehearsal(tmp_path):
    result = run([LEARN, CALIBRATE, AFTER], tmp_path / "run")
    assert not any(warnings_of(result, stage) for stage in range(3))
    # Two steps of training say nothing about a training.
    keys = {"model": tiny_net(), "data": DATA, "device": "cpu", "console": Console(quiet=True)}
    report = compress_aug.check(Recipe([LEARN, CALIBRATE, replace_lr(AFTER, 5.0)]), **keys)
    assert not any("calibration" in note for row in report["stages"] for note in row["notes"])


def replace_lr(stage, lr):
    return stage.model_copy(update={"lr": lr})


def test_a_model_that_lost_weights_since_is_another_one(tmp_path):
    result = run([LEARN, CALIBRATE, Prune(sparsity=0.5), AFTER], tmp_path / "run", fit=spoiling_fit)
    assert result.report["stages"][3]["accuracy"] == 0.25 and not warnings_of(result, 3)


def test_without_a_test_split_the_validation_split_decides(tmp_path):
    data = without(tiny_data(validation=40), "test")
    result = run([LEARN, CALIBRATE, AFTER], tmp_path / "run", data=data, fit=spoiling_fit)
    rows = result.report["stages"]
    assert [row["accuracy"] for row in rows] == [None] * 3
    assert rows[0]["validation_accuracy"] is None and rows[1]["validation_accuracy"] > 0.5
    (line,) = warnings_of(result, 2)
    assert "validation accuracy 25.00 % after" in line and "of 40 images" in line


def test_without_both_splits_it_is_said_that_nothing_can_be_compared(tmp_path):
    data = without(DATA, "test", "validation")
    result = run([LEARN, CALIBRATE, AFTER], tmp_path / "run", data=data)
    (line,) = warnings_of(result, 2)
    assert "unknown: there are no test or validation images" in line
    assert not warnings_of(result, 0)


@pytest.mark.parametrize(
    ("images", "plain", "after", "is_warning"),
    [
        # Two standard errors: 2 sqrt(1000 x 0.8 x 0.2) = 25.3 images, 2 sqrt(100 x 0.25) = 10, 2 sqrt(0.97) = 1.97.
        (1000, 0.8, 0.799, False),
        (1000, 0.8, 0.775, False),
        (1000, 0.8, 0.774, True),
        (100, 0.5, 0.4, False),
        (100, 0.5, 0.39, True),
        (32, 1.0, 31 / 32, False),
        (32, 1.0, 30 / 32, True),
    ],
)
def test_what_chance_explains_is_no_warning(images, plain, after, is_warning):
    before = [{"word": "quantize", "index": 3, "sparsity": 0.0, "accuracy": plain}]
    data = SimpleNamespace(test=range(images), validation=())
    told = worse_than_calibrated({"sparsity": 0.0, "accuracy": after}, before, data)
    assert f"by {round((plain - after) * images)} of {images:,} images" in told
    assert told.startswith("WARNING") is is_warning and ("may be chance" in told) is not is_warning


@pytest.mark.parametrize("after", [0.8, 0.9])
def test_an_equal_or_better_training_is_no_news(after):
    row = {"sparsity": 0.4, "accuracy": after}
    before = [{"word": "quantize", "index": 0, "sparsity": 0.4, "accuracy": 0.8}]
    assert worse_than_calibrated(row, before, DATA) is None


def test_plain_calibration_alone_is_a_recipe(tmp_path):
    recipe = Recipe([CALIBRATE, Export()], target="raspberry_pi_4", name="calibrated")
    assert [row["bits"] for row in recipe.plan()] == ["w8 a8", "w8 a8"]
    keys = {"model": tiny_net(), "data": DATA, "device": "cpu", "console": Console(quiet=True)}
    checked = compress_aug.check(recipe, **keys)
    assert [row["word"] for row in checked["stages"]] == ["quantize", "export"]
    report = compress_aug.run(recipe, out=tmp_path / "run", **keys).report
    assert report["finished"] and report["stages"][0]["accuracy"] == report["exports"][0]["model_accuracy"]
    assert report["exports"][0]["integer_layers"] > 0
