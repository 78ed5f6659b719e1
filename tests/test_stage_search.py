"""`search` in recipes: mistakes, plans, what is kept and used, what resumes, and that the model comes out untouched."""

import json
import pickle
import sys
import textwrap
from dataclasses import replace
from functools import partial

import cloudpickle
import pytest
import torch
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Distill, Keep, PolicySlot, Prune, Quantize, Recipe, Search, Stage, Train
from compress_aug.errors import Interrupted, MissingPart, RecipeError
from compress_aug.policies import Policy, PolicySchedule, read_schedule
from compress_aug.recipe import load_recipe
from compress_aug.search import population, reduced
from compress_aug.stages import policies as stage_policies
from compress_aug.training import Training

QUIET = Console(quiet=True)


def train(epochs=2, **keys):
    return Train(epochs=epochs, batch_size=16, lr=0.05, precision="float32", **keys)


def policies(keep="found", **keys):
    keys = {
        "population": 2,
        "every": 1,
        "train_images": 32,
        "validation_images": 16,
        "train": train(),
        **keys,
    }
    return Search(kind="population", keep=keep, **keys)


def magnitudes(keep="by_sparsity", **keys):
    keys = {"grid": ["none", 4, 14], "refine": 2, "train_images": 32, "train": train(1), **keys}
    return Search(kind="magnitude", keep=keep, **keys)


def run(stages, out, **keys):
    keys = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET, **keys}
    return compress_aug.run(Recipe(stages, name="toy"), out=out, **keys)


def row(result, index):
    return result.report["stages"][index]


def test_a_policy_is_found_kept_and_used(tmp_path) -> None:
    stages = [policies(), train(augment={"policy": "found"})]
    result = run(stages, tmp_path / "run")
    kept = read_schedule(tmp_path / "run/kept/found.yaml")
    assert isinstance(kept, PolicySchedule) and kept.epochs == 2
    assert kept.provenance["search"] == "population" and kept.provenance["members"] == 2
    about = row(result, 0)["search"]
    assert about["kept"] == "found" and len(about["curves"]) == 2 and about["takeovers"] == 1
    assert row(result, 1)["policy"] == "found"
    assert (tmp_path / "run/00-search/search.png").is_file()
    again = run(stages, tmp_path / "again")
    assert read_schedule(tmp_path / "again/kept/found.yaml") == kept
    assert row(again, 1)["loss"] == row(result, 1)["loss"]


def test_the_model_comes_out_as_it_went_in(tmp_path) -> None:
    model = tiny_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = run([policies(), magnitudes(sparsity=[0.0, 0.5])], tmp_path / "run", model=model)
    after = result.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_magnitudes_are_found_kept_and_used_by_another_recipe(tmp_path) -> None:
    stages = [
        train(),
        magnitudes(sparsity=[0.0, 0.5], seeds=2),
        Prune(sparsity=0.5),
        train(augment={"magnitude": "by_sparsity"}),
    ]
    result = run(stages, tmp_path / "run")
    kept = read_schedule(tmp_path / "run/kept/by_sparsity.yaml")
    assert kept.by == "sparsity" and list(kept.points) == [0.0, 0.5]
    summaries = row(result, 1)["search"]["summaries"]
    assert [one["sparsity"] for one in summaries] == [0.0, 0.5]
    assert all(len(one["curve"]) >= 3 and one["curve"][0][0] is None for one in summaries)
    outcomes = json.loads((tmp_path / "run/01-search/outcomes.json").read_text())
    assert {(one["sparsity"], one["seed"]) for one in outcomes} == {(0.0, 0), (0.0, 1), (0.5, 0), (0.5, 1)}
    found = kept.points[0.5]
    assert row(result, 3)["magnitude"] == ([found, found] if found else None)
    file = str(tmp_path / "run/kept/by_sparsity.yaml")
    other = run([Prune(sparsity=0.5), train(augment={"magnitude": file})], tmp_path / "other")
    assert row(other, 1)["magnitude"] == ([found, found] if found else None)


def test_a_student_of_few_bits_searches_under_its_teacher(tmp_path) -> None:
    taught = train(distill=Distill(teacher="teacher", temperature=2.0))
    stages = [
        train(),
        Keep(name="teacher"),
        Quantize(weights=4, activations=4, calibrate=32),
        policies(train=taught),
        train(augment={"policy": "found"}, distill=Distill(teacher="teacher")),
    ]
    result = run(stages, tmp_path / "run")
    assert row(result, 3)["search"]["best_member"] in (0, 1)
    assert row(result, 4)["bits"]["weights"] < 32


@pytest.mark.parametrize("start", ["model", "trained"])
@pytest.mark.parametrize("judge", ["clean", "augmented"])
def test_every_way_of_a_sweep_runs(tmp_path, start: str, judge: str) -> None:
    stage = magnitudes(sparsity=[0.25, 0.5], start=start, judge=judge, grid=[4, 30], refine=0, scope="layer")
    result = run([stage], tmp_path / "run")
    assert [one["maximal"] for one in row(result, 0)["search"]["summaries"]] == [None, None]


def test_a_sweep_that_was_stopped_goes_on_to_the_same_end(tmp_path, monkeypatch) -> None:
    stages = [magnitudes(sparsity=[0.0, 0.5]), train(1, augment={"magnitude": "by_sparsity"})]
    whole = run(stages, tmp_path / "whole")
    epoch, calls = Training.epoch, []

    def stopped(training, each_step=lambda training: False):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return epoch(training, each_step)

    monkeypatch.setattr(Training, "epoch", stopped)
    with pytest.raises(Interrupted, match="go on with --resume"):
        run(stages, tmp_path / "part")
    done = len(calls) - 1
    rest = run(stages, tmp_path / "part", resume=True)
    assert (
        len(calls) - 5
        < len(json.loads((tmp_path / "whole/00-search/outcomes.json").read_text())) + 2 - done + 1
    )
    keys = ("optimal", "maximal", "curve")
    for one, other in zip(
        row(whole, 0)["search"]["summaries"], row(rest, 0)["search"]["summaries"], strict=True
    ):
        assert [one[key] for key in keys] == [other[key] for key in keys]
    assert row(whole, 1)["loss"] == row(rest, 1)["loss"]


def test_a_population_that_was_stopped_goes_on_to_the_same_end(tmp_path, monkeypatch) -> None:
    stages = [policies(population=3, train=train(3)), train(1, augment={"policy": "found"})]
    whole = run(stages, tmp_path / "whole")
    advance, calls = population._Search._advance, []

    def stopped(search, *arguments):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        advance(search, *arguments)

    monkeypatch.setattr(population._Search, "_advance", stopped)
    with pytest.raises(Interrupted, match="go on with --resume"):
        run(stages, tmp_path / "part")
    rest = run(stages, tmp_path / "part", resume=True)
    assert len(calls) == 5 + 5
    assert row(rest, 0)["search"] == row(whole, 0)["search"]
    assert row(rest, 1)["loss"] == row(whole, 1)["loss"]


def test_check_tries_it_without_searching(tmp_path) -> None:
    report = compress_aug.check(
        Recipe([policies(), train(augment={"policy": "found"}), magnitudes(sparsity=[0.0, 0.5])], name="toy"),
        model=tiny_net(),
        data=tiny_data(),
        device="cpu",
        console=QUIET,
    )
    assert len(report["stages"]) == 3


def read(tmp_path, stages, head="version: 1\nmodel: resnet8\ndata: digits\n"):
    path = tmp_path / "mine.yaml"
    path.write_text(head + "stages:\n" + textwrap.indent(textwrap.dedent(stages), "  "))
    return load_recipe(path)


def test_the_plan_says_how_many_epochs(tmp_path) -> None:
    recipe = read(
        tmp_path,
        """
        - search: {kind: population, keep: a, train: {epochs: 9}}
        - search: {kind: magnitude, keep: b, sparsity: [0, 0.2, 0.4], train: {epochs: 5}, seeds: 2}
        - search: {kind: magnitude, keep: c, start: trained, refine: 0, grid: [none, 3], train: {epochs: 5}}
        - train: {epochs: 2, augment: {policy: a}}
        - train: {epochs: 2, augment: {magnitude: b}}
        """,
    )
    plan = recipe.plan()
    assert [one["epochs"] for one in plan] == ["16 x 9", "72 x 5", "4 x 5", "2", "2"]
    assert plan[0]["magnitude"] == "searched"
    path = tmp_path / "saved.yaml"
    recipe.save(path)
    assert load_recipe(path).stages == recipe.stages


def test_defaults_of_train_reach_the_train_of_a_search(tmp_path) -> None:
    recipe = read(
        tmp_path,
        "- search: {kind: population, keep: a, train: {epochs: 9, lr: 0.2}}\n",
        head="version: 1\nmodel: resnet8\ndata: digits\ndefaults: {train: {lr: 0.3, batch_size: 7}}\n",
    )
    assert (recipe.stages[0].train.lr, recipe.stages[0].train.batch_size) == (0.2, 7)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("- search: {kind: policy, keep: a, train: {epochs: 5}}", "population"),
        ("- search: {kind: population, train: {epochs: 5}}", "keep"),
        ("- search: {kind: population, keep: a}", "train"),
        (
            "- search: {kind: population, keep: a, grid: full, train: {epochs: 5}}",
            "grid is not of kind population",
        ),
        (
            "- search: {kind: magnitude, keep: a, every: 2, train: {epochs: 5}}",
            "every is not of kind magnitude",
        ),
        ("- search: {kind: magnitude, keep: a, grid: [31], train: {epochs: 5}}", "0..30, and none, found 31"),
        ("- search: {kind: magnitude, keep: a, grid: [], train: {epochs: 5}}", "0..30"),
        ("- search: {kind: magnitude, keep: a, sparsity: [20], train: {epochs: 5}}", r"shares in \[0, 1\)"),
        (
            "- search: {kind: population, keep: a, every: 5, train: {epochs: 5}}",
            "no epoch behind an exchange",
        ),
        (
            "- search: {kind: population, keep: a, gpus: 0.5, train: {epochs: 5}}",
            "are of members on Ray: write driver: ray",
        ),
        (
            "- search: {kind: magnitude, keep: a, driver: ray, train: {epochs: 5}}",
            "driver is not of kind magnitude",
        ),
        (
            "- search: {kind: magnitude, keep: a, address: b, train: {epochs: 5}}",
            "address is not of kind magnitude",
        ),
        ("- search: {kind: population, keep: auto, train: {epochs: 5}}", "a meaning of its own"),
        (
            "- search: {kind: population, keep: a, train: {epochs: 5, augment: {magnitude: 4}}}",
            "what is searched for is not given",
        ),
        (
            "- search: {kind: population, keep: a, train: {epochs: 5, weights: best}}",
            "neither prune nor weights: best",
        ),
        (
            "- search: {kind: population, keep: a, train: {epochs: 5, distill: {teacher: teacher}}}",
            'no model was kept under the name "teacher"',
        ),
        ("- keep: a\n- search: {kind: population, keep: a, train: {epochs: 5}}", "already"),
        (
            "- prune: {sparsity: 0.5}\n- search: {kind: magnitude, keep: a, sparsity: [0.2], train: {epochs: 5}}",
            "masks only grow",
        ),
        (
            "- quantize: {scheme: dorefa, weights: 4, activations: 4}\n"
            "- search: {kind: magnitude, keep: a, sparsity: [0.2], train: {epochs: 5}}",
            "the levels of DoReFa have no zero",
        ),
        (
            "- search: {kind: population, keep: a, train: {epochs: 5}}\n- train: {epochs: 1, augment: {magnitude: a}}",
            "is a kept policy, expected a schedule",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, stages: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, stages)


def test_without_ray_it_is_said_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPart, match=r'pip install "compress-aug\[ray\]"'):
        run([policies(driver="ray")], tmp_path / "run")


def test_members_elsewhere_are_made_of_checkpoints(tmp_path) -> None:
    """What Ray's workers are sent: masked, quantized and with a teacher, it trains as the member here does."""
    taught = policies(train=train(distill=Distill(teacher="teacher")))
    made = {}

    class Look(Stage):
        word = "look"

        def run(self, state, setup):
            own = replace(setup, data=reduced(setup.data, 32, 16))
            remote = pickle.loads(cloudpickle.dumps(stage_policies._Remote.of(taught, state, own)))
            there, slot = remote()
            here_slot = PolicySlot(partial(stage_policies._change, taught, state, own))
            here = stage_policies._training(taught, state, own, here_slot)
            for training, one in ((there, slot), (here, here_slot)):
                one.policy = Policy((3,) * 30, (4,) * 30)
                training.epoch()
            made["both"] = [training.history[-1] for training in (there, here)]
            return state

    stages = [
        train(),
        Keep(name="teacher"),
        Prune(sparsity=0.5),
        Quantize(weights=4, activations=4, calibrate=32),
        Look(),
    ]
    run(stages, tmp_path / "run")
    there, here = made["both"]
    assert (there["loss"], there["validation_accuracy"]) == (here["loss"], here["validation_accuracy"])
