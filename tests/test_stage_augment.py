"""`augment:` in a recipe: its defaults, its mistakes, files and kept names, and what a run makes of them."""

import io
import re
import textwrap

import pytest
import torch
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import (
    Augment,
    Keep,
    PolicySchedule,
    Recipe,
    Stage,
    State,
    Train,
    read_schedule,
    write_schedule,
)
from compress_aug.augment import LearnedAugment, RandAugment, TeacherFilter
from compress_aug.errors import RecipeError
from compress_aug.policies import Policy, Segment
from compress_aug.recipe import load_recipe
from compress_aug.schedule import Points
from compress_aug.stages import Filter

QUIET = Console(quiet=True)

POLICY = PolicySchedule(10, (Segment(4, Policy.none()), Segment(6, Policy((5,) * 30, (9,) * 30))))


def read(tmp_path, augment, before=""):
    path = tmp_path / "mine.yaml"
    stages = f"- train: {{epochs: 2, augment: {augment}}}\n"
    path.write_text(
        "version: 1\nmodel: resnet8\ndata: digits\nstages:\n" + textwrap.indent(before + stages, "  ")
    )
    return load_recipe(path)


def problem(tmp_path, augment, before=""):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, augment, before)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


KEPT = "- keep: teacher\n"


def test_a_filter_brings_a_magnitude_of_its_own_for_each_candidate(tmp_path):
    recipe = read(tmp_path, "{filter: {teacher: teacher}}", KEPT)
    augment = recipe.stages[1].augment
    assert (augment.magnitude, augment.random_magnitude) == (30, True)
    assert augment.filter == Filter(teacher="teacher", candidates=4, alpha=1.0, beta=0.5)
    assert recipe.plan()[1]["magnitude"] == "0..30, best of 4"
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml").stages == recipe.stages
    assert not any("rises" in line for line in load_recipe("teacher_filter").warnings())
    fixed = read(tmp_path, "{magnitude: 9, filter: {teacher: teacher, candidates: 2}}", KEPT)
    assert (fixed.stages[1].augment.magnitude, fixed.stages[1].augment.random_magnitude) == (9, False)
    assert fixed.plan()[1]["magnitude"] == "9, best of 2"


def test_a_policy_fills_with_the_mean_colour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_schedule(POLICY, "learned.yaml")
    recipe = read(tmp_path, "{policy: learned.yaml}")
    assert recipe.stages[0].augment.fill == "mean"
    assert recipe.plan()[0]["magnitude"] == "policy learned.yaml"
    assert read(tmp_path, "{policy: learned.yaml, fill: 7}").stages[0].augment.fill == 7
    assert read(tmp_path, "{magnitude: 3}").stages[0].augment.fill == 0


def test_a_magnitude_may_come_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_schedule(Points(by="sparsity", points={0: 14, 0.5: 4}), "found.yaml", {"by": "a search"})
    recipe = read(tmp_path, "{magnitude: found.yaml}")
    state = State(tiny_net())
    strength = recipe.stages[0].augment.strength(state, {"sparsity": 0.25}.__getitem__)
    assert strength(0.0) == 9


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        (
            "{filter: {teacher: techer}}",
            'filter.teacher: no model was kept under the name "techer"; did you mean',
        ),
        ("{filter: {}}", 'the key "teacher" is missing'),
        ("{filter: {teacher: teacher, alpha: 0, beta: 0}}", "nothing would tell the candidates apart"),
        ("{filter: {teacher: teacher, candidates: 0}}", "expected a number of at least 1, found 0"),
        ("{filter: {teacher: teacher, kl_form: lk}}", 'found "lk"'),
        ("{random_magnitude: true}", "random_magnitude needs a magnitude"),
        ("{policy: nowhere.yaml}", "There is no file nowhere.yaml"),
        (
            "{policy: somewhere}",
            'policy: no policy was kept under the name "somewhere"; no earlier stage keeps one',
        ),
        ("{policy: teacher}", 'policy: "teacher" is a kept model, expected a policy'),
        ("{policy: learned.yaml, magnitude: 3}", "a policy has operations and magnitudes of its own"),
        ("{policy: found.yaml}", "policy: found.yaml holds a magnitude; write magnitude: found.yaml"),
        (
            "{magnitude: learned.yaml}",
            "magnitude: learned.yaml holds a learned policy; write policy: learned.yaml",
        ),
        ("{magnitude: auto}", "needs a search stage before it"),
        ("{replay: legacy}", "replay belongs to a learned policy"),
        ("{replay: legcy, policy: learned.yaml}", 'found "legcy"'),
        ("{cutout: 5}", "multiple of 2"),
        ("{fill: 300}", "expected 0..255, [red, green, blue] of them, or mean, found 300"),
        ("{fill: [1, 2]}", "expected 0..255"),
        ("{fill: meen}", "meen"),
        ("{interpolation: cubic}", "'nearest' or 'bilinear'"),
        ("{magnitude: 31}", "expected a magnitude in 0..30"),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, augment, sentence):
    monkeypatch.chdir(tmp_path)
    write_schedule(POLICY, "learned.yaml")
    write_schedule(14.0, "found.yaml")
    assert sentence in problem(tmp_path, augment, KEPT)


# ---------------------------------------------------------------- what is built


class Fake:
    """Of a Setup, what building an augmentation looks at."""

    def __init__(self):
        self.data = tiny_data()
        self.notes = []

    def note(self, line):
        self.notes.append(line)


def test_what_is_built():
    setup, teacher = Fake(), tiny_net()
    state = State(tiny_net(), {"teacher": teacher, "found": POLICY})
    plain = Augment(magnitude=9, operations=3, cutout=4, fill=[1, 2, 3], interpolation="bilinear")
    built = plain.build(state, setup, epochs=5, taught_by=None)
    assert isinstance(built, RandAugment)
    assert (built.operations, built.cutout, built.fill, built.interpolation) == (3, 4, (1, 2, 3), "bilinear")
    assert (built.crop_padding, built.flip) == (1, False), "what the data set names"
    built = Augment(policy="found", crop_padding=2).build(state, setup, epochs=5, taught_by=None)
    assert isinstance(built, LearnedAugment)
    assert (built.schedule, built.epochs, built.crop_padding) == (POLICY, 5, 2)
    assert built.fill == tuple(round(255 * value) for value in setup.data.mean)
    filtered = Augment(filter=Filter(teacher="teacher", alpha=0, candidates=3))
    built = filtered.build(state, setup, epochs=5, taught_by="teacher")
    assert isinstance(built, TeacherFilter)
    assert (built.candidates, built.teacher) == (3, teacher)
    assert "alpha is 0" in setup.notes[0]


# ---------------------------------------------------------------- runs


class KeepPolicy(Stage):
    """Keeps a policy and a magnitude, as a search would."""

    word = "keep_policy"

    def foresee(self, outlook):
        from dataclasses import replace

        return replace(outlook, kept={**outlook.kept, "found": "policy", "level": "schedule"})

    def run(self, state, setup):
        points = Points(by="sparsity", points={0.0: 8, 1.0: 2})
        return State(state.model, {**state.kept, "found": POLICY, "level": points})


def train(epochs=1, **augment):
    return Train(epochs=epochs, batch_size=16, lr=0.05, precision="float32", augment=Augment(**augment))


def run(stages, out, **keys):
    keys = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET, **keys}
    return compress_aug.run(Recipe(stages, name="toy"), out=out, **keys)


def test_kept_schedules_are_used_stored_and_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [KeepPolicy(), train(2, policy="found"), train(magnitude="level")]
    result = run(stages, tmp_path / "run")
    rows = result.report["stages"]
    assert (rows[1]["policy"], rows[1]["magnitude"], rows[2]["magnitude"]) == ("found", None, [8, 8])
    assert read_schedule(tmp_path / "run" / "kept" / "found.yaml") == POLICY
    # Stopped behind the first stage, it goes on with what is stored.
    for place in (1, 2):
        for file in (tmp_path / "run").glob(f"0{place}-*/*"):
            file.unlink()
    again = run(stages, tmp_path / "run", resume=True)
    assert [row["loss"] for row in again.report["stages"]] == [row["loss"] for row in rows]
    # And another recipe uses the file.
    other = run(
        [train(policy="run/kept/found.yaml"), train(magnitude="run/kept/level.yaml")], tmp_path / "other"
    )
    assert [row["magnitude"] for row in other.report["stages"]] == [None, [8, 8]]


def test_the_mean_colour_of_grey_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_schedule(POLICY, "learned.yaml")
    stages = [train(policy="learned.yaml", cutout=4)]
    result = run(stages, tmp_path / "run", model=tiny_net(channels=1), data=tiny_data(channels=1))
    assert result.report["stages"][0]["policy"] == "learned.yaml"


def test_a_filtered_training_runs_and_repeats(tmp_path):
    stages = [
        train(2, magnitude=5),
        Keep(name="teacher"),
        Train(
            epochs=2,
            batch_size=16,
            lr=0.05,
            precision="float32",
            distill=compress_aug.Distill(teacher="teacher"),
            augment=Augment(filter=Filter(teacher="teacher", candidates=3)),
        ),
    ]
    said = io.StringIO()
    first = run(stages, tmp_path / "one", console=Console(file=said, width=200))
    second = run(stages, tmp_path / "two")
    assert re.search(r"M 30, chosen \d+\.\d · ", said.getvalue())
    rows = first.report["stages"][2]
    assert rows["magnitude"] == [30, 30]
    assert all(0 < epoch["chosen_magnitude"] < 30 for epoch in rows["history"])
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_a_filter_may_ask_another_teacher_than_the_loss(tmp_path):
    stages = [
        Keep(name="judge"),
        train(1, magnitude=5),
        Keep(name="teacher"),
        Train(
            epochs=1,
            batch_size=16,
            lr=0.05,
            precision="float32",
            distill=compress_aug.Distill(teacher="teacher"),
            augment=Augment(filter=Filter(teacher="judge", beta=0.0)),
        ),
    ]
    assert run(stages, tmp_path / "run").report["stages"][3]["loss"] > 0
