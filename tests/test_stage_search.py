"""`search` in recipes: mistakes, plans, what is kept and used, what resumes, and that the model comes out untouched."""

import io
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
from compress_aug.errors import (
    DataError,
    Interrupted,
    MissingPart,
    RecipeError,
    RunFolderError,
    TrainingError,
)
from compress_aug.policies import Policy, PolicySchedule, read_schedule
from compress_aug.recipe import load_recipe
from compress_aug.report.contract import as_report
from compress_aug.report.searches import figures
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


def test_own_ways_to_train_are_for_train_stages_alone(tmp_path) -> None:
    seen = []

    def own(training, *, checkpoint, progress):
        seen.append(training.settings.epochs)
        return compress_aug.fit(training, checkpoint=checkpoint, progress=progress)

    stages = [policies(), magnitudes(grid=[4], refine=0), train(3)]
    result = run(stages, tmp_path / "run", fit=own)
    assert seen == [3] and len(row(result, 2)["history"]) == 3


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


def test_a_stopped_sweep_trains_none_of_its_dense_nets_again(tmp_path, monkeypatch) -> None:
    """Each epoch of the sweep is trained once, whether it is stopped or not; nothing of it lies about afterwards."""
    stages = [magnitudes(sparsity=[0.25, 0.5], start="trained", grid=["none", 4, 30], refine=0)]
    whole = run(stages, tmp_path / "whole")
    epoch, calls = Training.epoch, []

    def stopped(training, each_step=lambda training: False):
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return epoch(training, each_step)

    monkeypatch.setattr(Training, "epoch", stopped)
    with pytest.raises(Interrupted, match="go on with --resume"):
        run(stages, tmp_path / "part")
    assert len([*(tmp_path / "part/00-search").glob("dense-*.pt")]) == 3
    rest = run(stages, tmp_path / "part", resume=True)
    assert len(calls) - 1 == 3 + 2 * 3
    assert row(rest, 0)["search"]["summaries"] == row(whole, 0)["search"]["summaries"]
    for folder in ("whole", "part"):
        assert not [*(tmp_path / folder / "00-search").glob("*.pt")]


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


class Count(Stage):
    """Counts what hangs on the kept teacher."""

    word = "count"

    def run(self, state, setup):
        modules = list(state.kept["teacher"].modules())
        setup.record("hooks", sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules))
        return state


TAPPED = Distill(teacher="teacher", loss="kd_svd", taps=["2", "5"])


def test_nothing_stays_on_the_teacher_behind_a_search(tmp_path) -> None:
    stages = [train(1), Keep(name="teacher"), policies(train=train(distill=TAPPED)), Count()]
    assert row(run(stages, tmp_path / "run"), 3)["hooks"] == 0
    report = compress_aug.check(
        Recipe(stages, name="toy"), model=tiny_net(), data=tiny_data(), device="cpu", console=QUIET
    )
    assert report["stages"][3]["hooks"] == 0


def _breaks_down_at(monkeypatch, *wrong) -> None:
    close = Training._close_epoch

    def broken(training, epoch):
        if training._tally.first in wrong:
            raise TrainingError("The loss became nan in epoch 1")
        close(training, epoch)

    monkeypatch.setattr(Training, "_close_epoch", broken)


@pytest.mark.parametrize("start", ["model", "trained"])
def test_a_magnitude_that_no_training_bears_ranks_last(tmp_path, monkeypatch, start: str) -> None:
    _breaks_down_at(monkeypatch, 14)
    stages = [
        *(train(1), Keep(name="teacher")),
        magnitudes(refine=0, start=start, train=train(1, distill=TAPPED)),
        Count(),
    ]
    said = io.StringIO()
    result = run(stages, tmp_path / "run", console=Console(width=200, file=said))
    assert row(result, 3)["hooks"] == 0
    (summary,) = row(result, 2)["search"]["summaries"]
    assert summary["curve"][2] == [14, None, None, None] and summary["optimal"] != 14
    assert "M 14, seed 0: broke down" in said.getvalue() and "1 of the magnitudes tried" in said.getvalue()
    outcomes = json.loads((tmp_path / "run/02-search/outcomes.json").read_text())
    assert [one["accuracy"] is None for one in outcomes] == [False, False, True]
    assert "<svg" in next(figures(as_report(result.report)))[3]


def test_a_sweep_of_which_all_breaks_down_is_told(tmp_path, monkeypatch) -> None:
    _breaks_down_at(monkeypatch, None, 4, 14)
    with pytest.raises(TrainingError, match="Every training of the search at sparsity 0 broke down"):
        run([magnitudes()], tmp_path / "run")


def test_resumed_by_the_recipe_of_the_run_it_is_the_same_search(tmp_path) -> None:
    """What is chosen for a kind of search is written down, so that reading it back finds nothing to choose."""
    stages = [
        policies(),
        policies("other", train=train(augment={"fill": 7})),
        policies("third", train={**train().model_dump(exclude={"augment"}), "augment": {"cutout": 2}}),
    ]
    recipe = Recipe(stages, name="toy", model="resnet8", data="digits")
    recipe.save(tmp_path / "recipe.yaml")
    saved = load_recipe(tmp_path / "recipe.yaml")
    assert tuple(saved.stages) == tuple(recipe.stages)
    for one, again in zip(recipe.stages, saved.stages, strict=True):
        assert one.train.augment._fill_of((0.5, 0.2, 0.1)) == again.train.augment._fill_of((0.5, 0.2, 0.1))
    assert [stage.train.augment.fill for stage in stages] == ["mean", 7, "mean"]
    assert magnitudes().train.augment.fill == 0


def test_a_search_that_nothing_uses_is_left_out_of_recipes_in_code(tmp_path) -> None:
    unused, used = policies(only_if_used=True), policies("there", only_if_used=True)
    recipe = Recipe([unused, used, train(1, augment={"policy": "there"})], name="toy")
    assert [row["stage"].split(",")[-1] for row in recipe.plan()][:1] == [" keep there"]
    assert "keep found is left out" in recipe.warnings()[0]
    result = run([unused, used, train(1, augment={"policy": "there"})], tmp_path / "run")
    assert [one["word"] for one in result.report["stages"]] == ["search", "train"]
    assert "only_if_used" not in (tmp_path / "run/recipe.yaml").read_text()
    compress_aug.load(tmp_path / "run", model=tiny_net())
    run([unused, used, train(1, augment={"policy": "there"})], tmp_path / "run", resume=True)
    with pytest.raises(RecipeError, match=r"stages is empty[^~]*keep found is left out"):
        run([unused], tmp_path / "nothing")


def test_check_does_without_a_validation_split_as_the_search_does(tmp_path) -> None:
    data = tiny_data(train=600)
    data = replace(data, validation=data.validation.first(0))
    fits = policies(train_images=300, validation_images=64)
    keys = {"model": tiny_net(), "data": data, "device": "cpu", "console": QUIET}
    assert compress_aug.check(Recipe([fits], name="toy"), **keys)["stages"]
    sweeps = magnitudes(train_images=300, validation_images=64)
    assert compress_aug.check(Recipe([sweeps], name="toy"), **keys)["stages"]
    # Where nothing is left in truth, both say it, and before the first stage.
    none_left = [train(1), policies(train_images=600, validation_images=64)]
    with pytest.raises(DataError, match=r"stage 1 .*none are left"):
        compress_aug.check(Recipe(none_left, name="toy"), **keys)
    with pytest.raises(DataError, match="none are left"):
        run(none_left, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_a_run_that_only_searched_has_no_model_to_start_from(tmp_path) -> None:
    run([policies()], tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"has changed the model yet.*found\.yaml"):
        run([train(1)], tmp_path / "other", start_from=tmp_path / "run")
    with pytest.raises(RunFolderError, match="has changed the model yet"):
        compress_aug.load(tmp_path / "run", model=tiny_net())


def test_several_processes_are_refused_before_the_first_stage(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"stage 1 .*a search runs in one process, and this run has 2"):
        run([train(1), policies()], tmp_path / "run", devices=2)
    assert not (tmp_path / "run").exists()


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
        ("- search: {kind: magnitude, keep: a, grid: [true], train: {epochs: 5}}", "and none, found True"),
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
            "- attach: {blocks: 1}\n- search: {kind: magnitude, keep: a, sparsity: [0, 0.5], train: {epochs: 5}}",
            "search before attach, drop the attached layers first, or leave sparsity out",
        ),
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
    recipe = Recipe([train(1), policies(driver="ray")], name="toy")
    with pytest.raises(MissingPart, match=r'stage 1 .*pip install "compress-aug\[ray\]"'):
        run(recipe.stages, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingPart, match="pip install"):
        compress_aug.check(recipe, model=tiny_net(), data=tiny_data(), device="cpu", console=QUIET)


@pytest.mark.parametrize(
    ("defaults", "stage", "message"),
    [
        (
            "{train: {weights: best}}",
            "{kind: population, keep: a, train: {epochs: 5}}",
            "write prune: null or",
        ),
        (
            "{search: {population: 4}}",
            "{kind: magnitude, keep: a, train: {epochs: 5}}",
            "where defaults set it, write population: null",
        ),
    ],
)
def test_what_defaults_set_has_a_way_out(tmp_path, defaults: str, stage: str, message: str) -> None:
    head = f"version: 1\nmodel: resnet8\ndata: digits\ndefaults: {defaults}\n"
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, f"- search: {stage}", head)
    way_out = stage.replace("epochs: 5", "epochs: 5, weights: last").replace(
        "keep: a", "keep: a, population: null"
    )
    assert read(tmp_path, f"- search: {way_out}", head).stages


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
