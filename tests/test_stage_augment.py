"""`augment:` in a recipe: its defaults, its mistakes, files and kept names, and what a run makes of them."""

import io
import re
import textwrap
from collections import Counter
from pathlib import Path

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
from compress_aug.report import read_report
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
    weaker = read(tmp_path, "{magnitude: 9, filter: {teacher: teacher, candidates: 2}}", KEPT)
    assert (weaker.stages[1].augment.magnitude, weaker.stages[1].augment.random_magnitude) == (9, True)
    fixed = read(tmp_path, "{magnitude: 9, random_magnitude: false, filter: {teacher: teacher}}", KEPT)
    assert fixed.plan()[1]["magnitude"] == "9, best of 4"
    none = read(tmp_path, "{magnitude: none, filter: {teacher: teacher}}", KEPT)
    assert (none.stages[1].augment.magnitude, none.stages[1].augment.random_magnitude) == ("none", False)


def test_groups_within_groups_are_merged_with_their_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 1\nmodel: resnet8\ndata: digits\n"
        "defaults: {train: {augment: {magnitude: 9, filter: {teacher: teacher, candidates: 7}}}}\n"
        "stages:\n  - keep: teacher\n  - train: {epochs: 1, augment: {filter: {beta: 0}}}\n"
    )
    augment = load_recipe(path).stages[1].augment
    assert augment.filter == Filter(teacher="teacher", candidates=7, beta=0)
    assert augment.magnitude == 9
    path.write_text(path.read_text().replace("filter: {beta: 0}", "policy: learned.yaml"))
    with pytest.raises(RecipeError, match="where defaults set one of them, write magnitude: none"):
        load_recipe(path)


def test_columns_may_stand_anywhere_in_the_schema():
    definitions = compress_aug.recipe.recipe_schema()["$defs"]
    for name in ("Augment", "Filter", "Distill", "Train"):
        for field in definitions[name]["properties"].values():
            assert {"type": "string", "pattern": r"^\$\w+$"}.items() <= field["anyOf"][1].items()


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
        (
            "{policy: nowhere.yaml}",
            "policy: there is no file nowhere.yaml, neither beside the recipe nor in the current",
        ),
        (
            "{policy: somewhere}",
            'policy: no policy was kept under the name "somewhere"; no earlier stage keeps one',
        ),
        ("{policy: teacher}", 'policy: "teacher" is a kept model, expected a policy'),
        ("{policy: learned.yaml, magnitude: 3}", "a policy has operations and magnitudes of its own"),
        ("{policy: found.txt}", "compress-aug convert-schedule"),
        ("{policy: mine.yaml}", "this is a recipe, not a schedule file"),
        ("{magnitude: {by: sparsity, points: {0: 14, 60: 4}}}", "0..1, a share and not per cent, found 60"),
        ("{policy: found.yaml}", "policy: found.yaml holds a magnitude; write magnitude: found.yaml"),
        (
            "{magnitude: learned.yaml}",
            "magnitude: learned.yaml holds a learned policy; write policy: learned.yaml",
        ),
        ("{magnitude: auto}", "add auto: {reference: NAME}"),
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
    Path("found.txt").write_text("[]")
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
    built = plain.build(state, setup, epochs=5)
    assert isinstance(built, RandAugment)
    assert (built.operations, built.cutout, built.fill, built.interpolation) == (3, 4, (1, 2, 3), "bilinear")
    assert (built.crop_padding, built.flip) == (1, False), "what the data set names"
    built = Augment(policy="found", crop_padding=2, replay="legacy").build(state, setup, epochs=5)
    assert isinstance(built, LearnedAugment)
    assert (built.schedule, built.epochs, built.crop_padding, built.replay) == (POLICY, 5, 2, "legacy")
    assert built.fill == tuple(round(255 * value) for value in setup.data.mean)
    given = {"alpha": 0.0, "beta": 0.25, "temperature": 2.0, "kl_form": "ce"}
    filtered = Augment(filter=Filter(teacher="teacher", candidates=3, **given))
    built = filtered.build(state, setup, epochs=5)
    assert isinstance(built, TeacherFilter)
    assert (built.candidates, built.teacher, built._score) == (3, teacher, given)
    assert "alpha is 0" in setup.notes[0]
    grey = State(tiny_net(channels=1))
    setup.data = tiny_data(channels=1)
    assert Augment(fill="mean", magnitude=3).build(grey, setup, epochs=5).fill == (79,)
    with pytest.raises(RecipeError, match=r"\[1, 2, 3\] is for colour images, but these have 1 channel"):
        Augment(fill=[1, 2, 3], magnitude=3).build(grey, setup, epochs=5)


def test_what_was_kept_must_be_what_is_asked_for():
    state = State(tiny_net(), {"found": POLICY, "level": 14})
    assert Augment(magnitude="level").strength(state, None)(0.5) == 14
    with pytest.raises(
        RecipeError, match=r'augment\.magnitude: "found" holds a PolicySchedule, expected a number'
    ):
        Augment(magnitude="found").strength(state, None)
    with pytest.raises(RecipeError, match=r'augment\.policy: "level" holds a int, expected a PolicySchedule'):
        Augment(policy="level").build(state, Fake(), epochs=5)


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


def page_of(folder):
    from compress_aug.report import report_table, write_page

    console = Console(file=io.StringIO(), width=200)
    console.print(report_table(read_report(folder)))
    assert "0..30" in console.file.getvalue()
    return write_page(folder).read_text()


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
    assert (rows["magnitude"], rows["random_magnitude"]) == ([30, 30], True)
    assert "0..30" in page_of(first.folder)
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
    asked = []

    def fit(training, **keys):
        for name in ("teacher",):
            for part in (training.objective, training._augment):
                if isinstance(getattr(part, name, None), torch.nn.Module):
                    net = getattr(part, name)
                    net.register_forward_hook(lambda *_, net=net: asked.append(id(net)))
        return compress_aug.fit(training, **keys)

    run(stages, tmp_path / "run", fit=fit)
    # 64 images are 4 steps: the judge scores four candidates in each, the teacher answers once.
    assert sorted(Counter(asked).values()) == [4, 16]


def test_a_run_is_whole_without_the_files_that_it_was_started_with(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "other").mkdir()
    write_schedule(POLICY, tmp_path / "far" / "learned.yaml")
    write_schedule(9.0, tmp_path / "far" / "level.yaml")
    recipe = tmp_path / "far" / "mine.yaml"
    recipe.write_text(
        "version: 1\nstages:\n"
        "  - train: {epochs: 2, batch_size: 16, precision: float32, augment: {policy: learned.yaml}}\n"
        "  - train: {epochs: 1, batch_size: 16, precision: float32, augment: {magnitude: level.yaml}}\n"
    )
    monkeypatch.chdir(tmp_path / "other")
    given = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET}
    whole = compress_aug.run(recipe, out="run", **given)
    stored = load_recipe("run/recipe.yaml")
    assert stored.stages[0].augment.policy == "run/schedules/learned.yaml"
    for file in Path("run").glob("01-*/*"):
        file.unlink()
    # Changed, it is another run; gone, the run's own copy does.
    write_schedule(3.0, tmp_path / "far" / "level.yaml")
    with pytest.raises(
        compress_aug.UserError, match=r"level\.yaml has changed since run was started with it"
    ):
        compress_aug.run(recipe, out="run", resume=True, **given)
    (tmp_path / "far" / "level.yaml").unlink()
    again = compress_aug.run("run/recipe.yaml", out="run", resume=True, **given)
    assert again.report["stages"][1]["magnitude"] == [9, 9]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    Path("run").rename("moved")
    assert compress_aug.load("moved", model=tiny_net())


class KeepTwice(Stage):
    """Keeps something under a name, and at the next call something else."""

    word = "keep_twice"
    name: str = "found"
    magnitude: float = 3.0

    def foresee(self, outlook):
        from dataclasses import replace

        return replace(outlook, kept={**outlook.kept, self.name: "schedule"})

    def run(self, state, setup):
        return State(state.model, {**state.kept, self.name: self.magnitude})


def test_what_is_kept_again_is_written_again_and_only_under_a_name(tmp_path):
    run([KeepTwice(), KeepTwice(magnitude=7.0)], tmp_path / "run")
    assert read_schedule(tmp_path / "run" / "kept" / "found.yaml") == 7.0
    with pytest.raises(compress_aug.UserError, match=r'"\.\./evil" is no name to keep something under'):
        run([KeepTwice(name="../evil")], tmp_path / "evil")
    assert not list(tmp_path.rglob("evil.yaml"))
