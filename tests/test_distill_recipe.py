"""`distill:` in a recipe: what it becomes, what is refused with which sentence, whole runs, a check, a resumed run."""

import pytest
import torch
from rich.console import Console
from toys import TinyResidual, tiny_data, two_maps_net

import compress_aug
from compress_aug import Distill, Keep, Model, Prune, PruneChannels, Quantize, Recipe, Train, check, run
from compress_aug.errors import Interrupted, RecipeError
from compress_aug.recipe import load_recipe
from compress_aug.schedule import Halving
from compress_aug.stages import Gradual
from compress_aug.stages.distillation import Taps

QUIET = Console(quiet=True)
LOSSES = ("soft_labels", "dml", "dml_online", "rkd", "mhgd", "kd_svd", "ii_kd")


def train(epochs=1, **keys):
    return Train(epochs=epochs, batch_size=16, lr=0.05, precision="float32", **keys)


def went(stages, out, **keys):
    given = {"model": two_maps_net(), "data": tiny_data(), "device": "cpu", "console": QUIET, **keys}
    return run(Recipe(stages), out=out, **given)


def read(text, path):
    path.write_text(f"version: 1\nmodel: resnet8\ndata: digits\nstages:\n- keep: teacher\n- train: {text}\n")
    return load_recipe(path).stages[1].distill


# ---------------------------------------------------------------- what it becomes


def test_defaults_follow_the_loss(tmp_path):
    path = tmp_path / "mine.yaml"
    soft = read("{epochs: 1, distill: {teacher: teacher}}", path)
    assert (soft.loss, soft.weight, soft.temperature, soft.squared) == ("soft_labels", 0.9, 4.0, True)
    rkd = read("{epochs: 1, distill: {teacher: teacher, loss: rkd}}", path)
    assert rkd.weight == Halving(start=1, halve_every=0.3)
    assert (rkd.distance, rkd.angle, rkd.normalise, rkd.embedding) == (50, 100, True, "logits")
    assert (rkd.clip, rkd.lambda_mode) == (True, "post_clip")
    whole = read("{epochs: 1, distill: {teacher: teacher, loss: ii_kd, heads: 2}}", path)
    assert whole.weight == Halving(start=0.4, halve_every=0.3)
    assert (whole.clip, whole.lambda_mode, whole.reduction, whole.heads) == (True, "post_clip", "sum", 2)
    assert (whole.attention, whole.attention_epochs, whole.taps) == ("pretrained", 0.2, "auto")
    unclipped = read("{epochs: 1, distill: {teacher: teacher, loss: ii_kd, clip: false}}", path)
    assert (unclipped.lambda_mode, unclipped.reduction) == (None, "batchmean")


def test_presets_of_role_kd(tmp_path):
    path = tmp_path / "mine.yaml"
    soft = read("{epochs: 1, distill: {teacher: teacher, preset: role_kd}}", path)
    assert (soft.weight, soft.temperature, soft.squared) == (0.3, 3.0, False)
    rkd = read("{epochs: 1, distill: {teacher: teacher, loss: rkd, preset: role_kd}}", path)
    assert (rkd.distance, rkd.angle, rkd.clip, rkd.lambda_mode) == (50, 100, False, None)
    whole = read("{epochs: 1, distill: {teacher: teacher, loss: ii_kd, preset: role_kd, heads: 8}}", path)
    assert (whole.heads, whole.attention, whole.lambda_mode, whole.weight) == (8, "random", "off", None)
    free = read("{epochs: 1, distill: {teacher: teacher, loss: ii_kd, preset: role_kd, clip: false}}", path)
    assert (free.lambda_mode, free.weight) == (None, Halving(start=0.4, halve_every=0.3))


def test_taps_have_three_forms(tmp_path):
    path = tmp_path / "mine.yaml"
    head = "{epochs: 1, distill: {teacher: teacher, loss: kd_svd, taps: "
    assert read(head + "auto}}", path).taps == "auto"
    assert read(head + "[layer1, layer2]}}", path).taps == ["layer1", "layer2"]
    assert read(head + "{student: [a, b]}}}", path).taps == Taps(student=["a", "b"])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("preset", [None, "role_kd"])
def test_what_a_run_writes_down_is_read_back_the_same(loss, preset, tmp_path):
    if preset and loss not in ("soft_labels", "rkd", "mhgd", "ii_kd"):
        with pytest.raises(ValueError, match="preset: role_kd is for soft_labels, rkd, mhgd, ii_kd"):
            Distill(teacher="teacher", loss=loss, preset=preset)
        return
    recipe = Recipe(
        [Keep(name="teacher"), train(distill=Distill(teacher="teacher", loss=loss, preset=preset))]
    )
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert load_recipe(path).stages[1] == recipe.stages[1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("temprature: 3", 'unknown key "temprature": did you mean "temperature"?'),
        ("loss: [rkd]", "found ['rkd']"),
        ("loss: kdsvd", 'did you mean "kd_svd"?'),
        (
            "loss: rkd, temperature: 3",
            "temperature belongs to soft_labels, and this loss is rkd: leave it out",
        ),
        ("taps: [layer1]", "taps belongs to rkd, mhgd, kd_svd, ii_kd, and this loss is soft_labels"),
        ("loss: rkd, taps: auto", "rkd compares logits, and reads no taps: set embedding: pooled"),
        (
            "loss: mhgd, attention: random, attention_epochs: 0.5",
            "with attention: random no heads are trained before",
        ),
        ("loss: kd_svd, lambda_mode: off", "set clip: true, or leave it out"),
        ("loss: ii_kd, lambda_mode: off, weight: 0.4", "with lambda_mode: off there is no weight"),
        ("loss: dml, heads: 4", "heads belongs to mhgd, ii_kd, and this loss is dml"),
        ("weight: 1.5", "expected a weight in 0..1 for soft_labels"),
        ("loss: dml, weight: -1", "expected a weight of at least 0, found -1"),
        ("loss: rkd, distance: 0, angle: 0", "distance and angle are both 0"),
        ("loss: kd_svd, taps: []", "the list is empty: name at least one module"),
        ("loss: kd_svd, taps: {studnt: [a]}", 'unknown key "studnt": did you mean "student"?'),
        ("loss: mhgd, attention_epochs: 0", "a number above 0"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(keys, said, tmp_path):
    with pytest.raises(RecipeError) as error:
        read(f"{{epochs: 1, distill: {{teacher: teacher, {keys}}}}}", tmp_path / "mine.yaml")
    assert said in str(error.value) and "mine.yaml, line 6" in str(error.value)


def test_batches_of_one_have_no_relations():
    stages = [
        Keep(name="teacher"),
        Train(epochs=1, batch_size=1, distill=Distill(teacher="teacher", loss="rkd")),
    ]
    with pytest.raises(RecipeError, match="batch_size must be at least 2, found 1"):
        Recipe(stages).foresee()


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        (Distill(teacher="big"), "0.9 soft labels of big"),
        (Distill(teacher="big", loss="ii_kd"), "cross entropy + 0.4, halved every 30% · ii_kd of big"),
        (Distill(teacher="big", loss="mhgd", clip=True, lambda_mode="off"), "cross entropy + mhgd of big"),
    ],
)
def test_the_plan_names_the_loss(distill, words):
    assert train(distill=distill).plan()["objective"] == words


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_runs_in_a_check_and_in_a_run(loss, tmp_path):
    stages = [train(), Keep(name="teacher"), PruneChannels(until={"ratio": 0.5}, round_to=1)]
    stages.append(train(2, distill=Distill(teacher="teacher", loss=loss)))
    rehearsed = check(Recipe(stages), model=two_maps_net(), data=tiny_data(), device="cpu", console=QUIET)
    assert [row["word"] for row in rehearsed["stages"]] == ["train", "keep", "prune_channels", "train"]
    result = went(stages, tmp_path / "run")
    rows = result.report["stages"][-1]["history"]
    assert len(rows) == 2 and all(len(row["losses"]) >= 2 for row in rows)
    notes = " ".join(result.report["stages"][-1]["notes"])
    maps = loss in ("mhgd", "kd_svd", "ii_kd")
    assert ("taps: 2, 5 of the teacher, 2, 5 of the student" in notes) == maps
    assert ("learned 1x1 adapters" in notes) == maps
    # Nothing of it is in the files.
    again = compress_aug.load(result.folder, model=two_maps_net())
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in result.model.state_dict().items()
    )


@pytest.mark.parametrize("loss", ["dml_online", "mhgd", "ii_kd"])
def test_a_stopped_run_goes_on_to_the_same_end(loss, tmp_path):
    def stages():
        distill = Distill(
            teacher="teacher", loss=loss, **({"attention_epochs": 0.5} if loss != "dml_online" else {})
        )
        return [
            Keep(name="teacher"),
            PruneChannels(until={"ratio": 0.5}, round_to=1),
            train(2, distill=distill),
        ]

    whole = went(stages(), tmp_path / "whole")
    steps = 0

    def stopping(training, *, checkpoint=None, progress=None):
        def pause(training):
            nonlocal steps
            steps += 1
            return steps == 3

        assert not training.epoch(pause)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(training.state_dict(), checkpoint)
        raise Interrupted("")

    with pytest.raises(Interrupted):
        went(stages(), tmp_path / "cut", fit=stopping)
    resumed = went(stages(), tmp_path / "cut", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    told = [[row["losses"] for row in r.report["stages"][-1]["history"]] for r in (whole, resumed)]
    assert told[0] == told[1]


def test_relations_by_default_break_no_training_from_scratch(tmp_path):
    """The gradient of relations is far longer than the task's in a fresh net: added up as it is, it drowns the task."""

    def parts(**keys):
        distill = Distill(teacher="teacher", loss="rkd", **keys)
        student = Model(name="resnet8", arguments={"width": 4})
        stages = [train(8), Keep(name="teacher"), student, train(6, distill=distill)]
        result = went(stages, tmp_path / str(keys), data=tiny_data(128))
        return [row["losses"] for row in result.report["stages"][3]["history"]]

    first, *_, last = parts()
    assert first["cross_entropy"] < 1.5 and last["cross_entropy"] < 0.3
    assert last["rkd"] < first["rkd"] / 16
    drowned = parts(preset="role_kd")
    assert drowned[0]["cross_entropy"] > 3 and drowned[-1]["cross_entropy"] > 1


@pytest.mark.parametrize("scheme", ["integer", "dorefa"])
def test_a_low_bit_student_learns_all_of_it(scheme, tmp_path):
    stages = [train(), Keep(name="teacher")]
    stages.append(Quantize(scheme=scheme, weights=4, activations=4, calibrate=32, batch_norm="keep"))
    stages.append(train(1, distill=Distill(teacher="teacher", loss="ii_kd")))
    row = went(stages, tmp_path / "run").report["stages"][-1]["history"][0]
    assert list(row["losses"]) == ["cross_entropy", "rkd", "mhgd", "kd_svd"]
    assert all(value > 0 for value in row["losses"].values())


def test_zeros_grow_and_stay_while_it_learns(tmp_path):
    growing = Gradual(sparsity={"start": 0.2, "end": 0.6, "shape": "cubic"}, every=0.2, until=0.5)
    stages = [Keep(name="teacher"), Prune(sparsity=0.2)]
    stages.append(train(2, distill=Distill(teacher="teacher", loss="ii_kd"), prune=growing))
    stages.append(train(1, distill=Distill(teacher="teacher", loss="kd_svd")))
    rows = went(stages, tmp_path / "run").report["stages"]
    assert [round(row["sparsity"], 2) for row in rows[1:]] == [0.2, 0.6, 0.6]


def test_taps_that_do_not_fit_are_told_with_the_stage(tmp_path):
    stages = [Keep(name="teacher"), train(distill=Distill(teacher="teacher", loss="kd_svd", taps=["2", "9"]))]
    with pytest.raises(RecipeError, match=r"stage 1 .*taps of the teacher: no module is called \"9\""):
        check(Recipe(stages), model=two_maps_net(), data=tiny_data(), device="cpu", console=QUIET)
    stages = [Keep(name="teacher"), train(distill=Distill(teacher="teacher", loss="kd_svd"))]
    with pytest.raises(RecipeError, match="found 1 tap"):
        went(stages, tmp_path / "run", model=TinyResidual())
