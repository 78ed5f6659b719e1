"""`prune`, `redraw`, `train: {prune: ...}` in recipes: mistakes, plans, runs, what resumes, exact zeros in files."""

import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console
from toys import TinyResidual, tiny_data, tiny_net

import compress_aug
from compress_aug import (
    Gradual,
    Keep,
    Prune,
    PruneChannels,
    Quantize,
    Ramp,
    Recipe,
    Redraw,
    Stage,
    State,
    Train,
    checkpoint,
    deploy,
)
from compress_aug.errors import Interrupted, PruneError, RecipeError, RunFolderError
from compress_aug.measure import effective_weight, prunable_layers, sparsity
from compress_aug.pruning import mask_like, mask_pattern, mask_random, mask_smallest, masks_of
from compress_aug.recipe import load_recipe, recipe_schema
from compress_aug.stages import Outlook
from compress_aug.surgery import copy_model, make_permanent, surgery_log
from compress_aug.training import fit

QUIET = Console(quiet=True)


def read(tmp_path, stages, name="mine.yaml", head="version: 1\nmodel: resnet8\ndata: digits\n"):
    path = tmp_path / name
    path.write_text(head + "stages:\n" + textwrap.indent(textwrap.dedent(stages), "  "))
    return load_recipe(path)


def run(stages, out, **keys):
    recipe = stages if isinstance(stages, Recipe) else Recipe(stages, name="toy")
    keys = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET, **keys}
    return compress_aug.run(recipe, out=out, **keys)


def train(epochs=1, **keys):
    return Train(epochs=epochs, batch_size=16, lr=0.05, precision="float32", **keys)


def zeros(model):
    return sum(int((effective_weight(layer) == 0).sum()) for layer in prunable_layers(model).values())


def total(model):
    return sum(effective_weight(layer).numel() for layer in prunable_layers(model).values())


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(other[name], value) for name, value in one.items())


# ---------------------------------------------------------------- what is read, planned and refused


def test_plain_pruning_is_planned_as_ever(tmp_path):
    recipe = read(
        tmp_path, "- prune: {sparsity: 0.4}\n- prune: {sparsity: 0.6, method: random, scope: layer}\n"
    )
    rows = recipe.plan()
    assert [(row["stage"], row["sparsity"]) for row in rows] == [
        ("prune to 40 %", "40 %"),
        ("prune to 60 % at random", "60 %"),
    ]
    assert recipe.stages[0] == Prune(sparsity=0.4)


def test_what_only_the_model_can_tell_is_planned_as_the_least_that_is_known(tmp_path):
    recipe = read(
        tmp_path,
        """
        - prune: {sparsity: 0.4}
        - prune: {sparsity: 0.9, layers: [layer1.*, Linear], exclude: ["*.conv2"]}
        - prune: {pattern: 2:4, exclude: [conv1]}
        - keep: pruned
        - redraw
        - prune: {like: pruned}
        - prune: {pattern: "1:4", sparsity: 0.75}
        """,
    )
    rows = recipe.plan()
    assert [row["stage"] for row in rows] == [
        "prune to 40 %",
        "prune to 90 % of layer1.*, Linear but *.conv2",
        "prune 2:4 but conv1",
        "keep as pruned",
        "redraw weights",
        "prune like pruned",
        "prune 1:4",
    ]
    assert {row["sparsity"] for row in rows} == {"40 %"}
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml").stages == recipe.stages
    # A total of one part says nothing about that of the whole.
    assert Prune(sparsity=0.1, layers=["fc"]).foresee(Outlook(sparsity=0.4)).sparsity == 0.4


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("- prune", "expected sparsity, or pattern, or like"),
        ("- prune: {scope: layer}", "expected sparsity, or pattern, or like"),
        ("- prune: {sparsity: 0.4, methd: l1}", 'unknown key "methd": did you mean "method"?'),
        ("- prune: {sparsity: 0.4, method: randm}", 'did you mean "random"?'),
        ("- prune: {sparsity: 0.4, layers: Linear}", 'names, globs or types: write layers: ["Linear"]'),
        ("- prune: {sparsity: 0.4, layers: []}", "prune.layers: the list is empty: name at least one layer, or"),
        ("- train: {epochs: 1, prune: {sparsity: {start: 0, end: 0.5}, exclude: []}}", "leave exclude away"),
        ("- prune: {pattern: 4:2}", 'expected N:M, N of M weights stay, such as "2:4", found "4:2"'),
        ("- prune: {pattern: half}", 'found "half"'),
        ("- prune: {pattern: 2:4, sparsity: 0.6}", "pattern 2:4 is a sparsity of 0.5 in the layers"),
        ("- prune: {pattern: 2:4, method: random}", "leave out method and scope"),
        ("- prune: {pattern: 2:4, scope: layer}", "leave out method and scope"),
        ("- keep: a\n- prune: {like: a, sparsity: 0.4, layers: [fc]}", "leave out sparsity, layers"),
        ("- keep: teacher\n- prune: {like: techer}", 'like: no model was kept under the name "techer"; did you mean'),
        ("- prune: {like: teacher}", "put `- keep: teacher` before it"),
        ("- prune: {like: runs/none}", "no run with a finished stage in runs/none"),
        ("- quantize\n- redraw", "redraw must come before quantize"),
        ("- attach\n- redraw", "redraw: layers are attached"),
        ("- redraw: {seed: 3}", 'unknown key "seed"'),
        ("- train: {epochs: 1, prune: {sparsity: 0.5}}", "train.prune.sparsity"),
        ("- train: {epochs: 1, prune: {sparsity: {start: 0.5, end: 0.2}}}", "a sparsity that grows within 0..1"),
        ("- train: {epochs: 1, prune: {sparsity: {start: 0, end: 1}}}", "a sparsity that grows within 0..1"),
        ("- train: {epochs: 1, prune: {sparsity: {start: 0, end: 0.5, shap: cubic}}}", 'did you mean "shape"?'),
        ("- train: {epochs: 1, prune: {sparsity: {start: 0, end: 0.5}, every: 100}}", "a number of at most 1"),
        ("- train: {epochs: 1, weights: best, prune: {sparsity: {start: 0, end: 0.5}}}", "leave out weights: best"),
        (
            "- prune: {sparsity: 0.4}\n- train: {epochs: 1, prune: {sparsity: {start: 0.2, end: 0.6}}}",
            "sparsity: 0.2 is lower than the 0.4 of an earlier stage",
        ),
        (
            "- train: {epochs: 1, prune: {sparsity: {start: 0.2, end: 0.6}}}\n- prune: {sparsity: 0.5}",
            "sparsity: 0.5 is lower than the 0.6 of an earlier stage",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(tmp_path, monkeypatch, stages, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, stages)
    (problem,) = caught.value.problems
    assert said in problem
    line = 5 + stages.count("\n")
    assert f"mine.yaml, line {line}, stages.{line - 5}." in problem


def test_the_schema_wants_one_of_three_keys():
    assert recipe_schema()["$defs"]["Prune"]["anyOf"] == [
        {"required": ["sparsity"]}, {"required": ["pattern"]}, {"required": ["like"]},
    ]  # fmt: skip


def test_five_rounds_follow_the_formula_of_gradual_pruning(tmp_path):
    recipe = read(
        tmp_path,
        """
        - repeat: {rounds: 5, sparsity: {start: 0, end: 0.6, shape: cubic}, stages: [
            prune: {sparsity: $sparsity}, train: {epochs: 1}]}
        """.replace(
            "prune: {sparsity: $sparsity}, train: {epochs: 1}",
            "{prune: {sparsity: $sparsity}}, {train: {epochs: 1}}",
        ),
    )
    # By hand: 0.6 - 0.6 * (1 - n/5)^3, of arXiv 1710.01878 with n rounds of 5.
    by_hand = [0.2928, 0.4704, 0.5616, 0.5952, 0.6]
    assert [stage.sparsity for stage in recipe.stages[::2]] == pytest.approx(by_hand, abs=1e-9)


# ---------------------------------------------------------------- runs


def test_each_way_to_prune_runs_and_is_there_again(tmp_path):
    stages = [
        Prune(sparsity=0.2, method="random", layers=["Conv2d"]),
        train(),
        Prune(sparsity=0.5, scope="layer", exclude=["0"]),
        Keep(name="half"),
        Prune(pattern="2:4"),
        train(),
    ]
    result = run(stages, tmp_path / "run")
    expected = mask_random(tiny_net(), 0.2, seed=_seed(0), layers=["Conv2d"])
    first = checkpoint.rebuild(tiny_net(), tmp_path / "run" / "00-prune" / "model.safetensors")
    assert all(torch.equal(masks_of(first)[name], mask) for name, mask in masks_of(expected).items())
    assert [entry.get("method") for entry in surgery_log(result.model)] == ["random", "l1", "pattern"]
    kept = checkpoint.rebuild(tiny_net(), tmp_path / "run" / "kept" / "half.safetensors")
    after = masks_of(result.model)
    assert all(not (after[name] & ~mask).any() for name, mask in masks_of(kept).items())
    groups = after["3"].movedim(1, -1).reshape(-1, 4).sum(1)
    assert groups.max() <= 2
    (note,) = result.report["stages"][4]["notes"]
    assert note == "2:4 does not fit the input channels of 0: left as they are"
    assert same(result.model, compress_aug.load(tmp_path / "run", model=tiny_net()))
    assert sparsity(result.model) == result.report["stages"][-1]["sparsity"]


def _seed(ordinal):
    from compress_aug.training import mixed_seed

    return mixed_seed(0, "prune", ordinal)


def test_a_pattern_that_matches_no_layer_is_told_before_anything_is_trained(tmp_path):
    recipe = Recipe(
        [train(), Prune(sparsity=0.4, layers=["Linaer"])], name="toy", model=tiny_net(), data=tiny_data()
    )
    with pytest.raises(PruneError, match=r'"Linaer" matches no .*; did you mean "Linear"'):
        compress_aug.check(recipe, device="cpu", console=QUIET)


def test_a_part_that_is_sparser_cannot_be_brought_back_by_the_whole(tmp_path):
    with pytest.raises(PruneError, match="The model already has sparsity"):
        run([Prune(sparsity=0.9, layers=["Conv2d"]), Prune(sparsity=0.3)], tmp_path / "run")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A finished run that pruned and trained: whose masks others take."""
    return run([train(2), Prune(sparsity=0.6), train()], tmp_path_factory.mktemp("like") / "first")


def test_baseline_a_has_the_masks_of_the_other_run_and_weights_of_its_own(pruned, tmp_path, monkeypatch):
    monkeypatch.chdir(pruned.folder.parent)
    stages = "- prune: {like: ./first}\n- redraw\n- train: {epochs: 2, batch_size: 16, lr: 0.05, precision: float32}\n"
    recipe = read(tmp_path, stages, head="version: 1\n")
    assert [row["stage"] for row in recipe.plan()][:2] == ["prune like another run", "redraw weights"]
    out = tmp_path / "second"
    result = run(recipe, out)
    theirs, ours = masks_of(pruned.model), masks_of(result.model)
    assert theirs.keys() == ours.keys() and all(
        torch.equal(ours[name], mask) for name, mask in theirs.items()
    )
    drawn = checkpoint.rebuild(tiny_net(), out / "01-redraw" / "model.safetensors")
    assert zeros(drawn) == zeros(pruned.model) == round(0.6 * total(drawn))
    assert not torch.equal(effective_weight(drawn[3]), effective_weight(tiny_net()[3]) * theirs["3"])
    assert surgery_log(result.model)[-1]["verb"] == "redraw"
    assert same(result.model, compress_aug.load(out, model=tiny_net()))
    # The run stays whole without the one it took the masks from, wherever it is resumed from.
    for folder in ("01-redraw", "02-train"):
        shutil.rmtree(out / folder)
    monkeypatch.chdir(tmp_path)
    stored = load_recipe(out / "recipe.yaml")
    again = run(stored, out, resume=True)
    assert same(again.model, result.model)
    shutil.rmtree(out / "00-prune")
    assert same(run(stored, out, resume=True).model, result.model)


def test_a_run_is_found_from_the_recipe_as_well(pruned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pruned.folder, tmp_path / "somewhere" / "runs" / "first")
    recipe = read(tmp_path / "somewhere", "- prune: {like: runs/first}\n")
    assert (
        Path(recipe.stages[0].like)
        == tmp_path / "somewhere" / "runs" / "first" / "02-train" / "model.safetensors"
    )
    result = run(recipe, tmp_path / "out")
    assert zeros(result.model) >= round(0.6 * total(result.model))
    result = run([Prune(like=str(tmp_path / "somewhere" / "runs" / "first"))], tmp_path / "from_python")
    assert masks_of(result.model).keys() == masks_of(pruned.model).keys()
    assert (result.folder / "schedules" / "model.safetensors").is_file(), "a copy, as from a file"


def test_an_unfinished_run_lends_the_masks_of_its_last_finished_stage(pruned, tmp_path):
    run_of = tmp_path / "runs" / "first"
    shutil.copytree(pruned.folder, run_of)
    like = Prune(like=str(run_of))
    (run_of / "02-train" / "done.json").unlink()
    assert like.with_files(str).like == str(run_of / "01-prune" / "model.safetensors")
    (run_of / "02-train" / "done.json").write_text("{}")
    assert like.with_files(str).like == str(run_of / "02-train" / "model.safetensors")
    # A stage behind one that is to be done again counts for nothing.
    (run_of / "01-prune" / "done.json").unlink()
    with pytest.raises(
        RecipeError, match=r"00-train/model\.safetensors holds no masks: name a run that prunes"
    ):
        like.foresee(Outlook())
    (run_of / "00-train" / "done.json").unlink()
    with pytest.raises(RecipeError, match="no run with a finished stage"):
        like.foresee(Outlook())
    (tmp_path / "odd.safetensors").write_text("{}")
    with pytest.raises(RecipeError, match="is not a checkpoint"):
        Prune(like=str(tmp_path / "odd.safetensors")).foresee(Outlook())


def test_masks_of_a_kept_model(tmp_path):
    stages = [Prune(sparsity=0.5), Keep(name="half"), Restart(), Prune(like="half"), Redraw()]
    result = run(stages, tmp_path / "run")
    expected = mask_smallest(tiny_net(), 0.5)
    assert all(torch.equal(masks_of(result.model)[name], mask) for name, mask in masks_of(expected).items())
    with pytest.raises(RecipeError, match=r"like: no model was kept.*for the run's folder write \./runs"):
        (tmp_path / "runs").mkdir()
        with _inside(tmp_path):
            Prune(like="runs").foresee(Outlook())


class Restart(Stage):
    """The dense model again, as a stage of a user's own."""

    word = "restart"

    def run(self, state, setup):
        return State(tiny_net(), state.kept)


def _inside(folder):
    import contextlib

    return contextlib.chdir(folder)


def test_another_models_masks_must_fit(pruned, tmp_path):
    with pytest.raises(
        PruneError, match=r'layer "0" has the shape \[8, 3, 3, 3\], its weight \[16, 3, 3, 3\]'
    ):
        run([Prune(like=str(pruned.folder))], tmp_path / "run", model=tiny_net(width=16))


def test_redraw_goes_by_the_seed_of_the_recipe(tmp_path):
    results = [
        run([train(), Redraw()], tmp_path / str(n), seed=seed).model for n, seed in enumerate((1, 1, 2))
    ]
    assert same(results[0], results[1]) and not same(results[0], results[2])


# ---------------------------------------------------------------- within a training


GRADUAL = Gradual(sparsity=Ramp(start=0.2, end=0.6, shape="cubic"), every=0.05, until=0.8)


def test_a_training_that_prunes_ends_exactly_and_resumes_exactly(tmp_path):
    stages = [train(), train(3, prune=GRADUAL, optimizer="adam"), train()]
    assert Recipe(stages).plan()[1]["stage"] == "train 3 epochs, pruned to 60 %"
    assert [outlook.sparsity for outlook in Recipe(stages).foresee()] == [0.0, 0.6, 0.6]
    whole = run(stages, tmp_path / "whole")
    weights = total(whole.model)
    for row in whole.report["stages"][1:]:
        assert row["sparsity"] == round(0.6 * weights) / weights
    assert [entry["method"] for entry in surgery_log(whole.model)] == ["gradual"]
    assert same(whole.model, compress_aug.load(tmp_path / "whole", model=tiny_net()))

    stops = iter((1,))

    def stopping(training, *, checkpoint, progress=None):
        if training.settings.epochs == 3 and next(stops, None):
            training.epoch()
            torch.save(training.state_dict(), _made(checkpoint))
            raise Interrupted("as by Ctrl-C")
        return fit(training, checkpoint=checkpoint, progress=progress)

    with pytest.raises(Interrupted):
        run(stages, tmp_path / "stopped", fit=stopping)
    resumed = run(stages, tmp_path / "stopped", resume=True)
    assert same(resumed.model, whole.model)
    assert surgery_log(resumed.model) == surgery_log(whole.model)


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_training_of_few_steps_reaches_the_end_too(tmp_path):
    stages = [train(prune=GRADUAL.model_copy(update={"layers": ["Conv2d"]}))]
    report = compress_aug.check(
        Recipe(stages, name="toy", model=tiny_net(), data=tiny_data()), device="cpu", console=QUIET
    )
    convolutions, rest = 216 + 576, 32
    assert report["stages"][0]["sparsity"] == round(0.6 * convolutions) / (convolutions + rest)
    assert Recipe(stages).foresee()[0].sparsity == 0, "the least that is known"
    assert Recipe(stages).plan()[0]["stage"] == "train 1 epoch, pruned to 60 % of Conv2d"


# ---------------------------------------------------------------- exactly as many zeros, all the way to the file


WAYS = {
    "l1": lambda net: mask_smallest(net, 0.6),
    "random": lambda net: mask_random(net, 0.6, "layer", seed=1),
    "pattern": lambda net: mask_pattern(net, "2:4"),
    "like": lambda net: mask_like(net, mask_smallest(TinyResidual(), 0.6)),
}


def initializers(path):
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.ndim > 1]


@pytest.mark.parametrize("way", list(WAYS))
def test_zeros_are_counted_after_everything_that_follows(way, tmp_path):
    torch.manual_seed(0)
    net = WAYS[way](TinyResidual())
    count, before = zeros(net), masks_of(net)
    images = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    for make, keys in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {}), (torch.optim.AdamW, {})):
        optimizer = make(net.parameters(), lr=0.01, weight_decay=0.1, **keys)
        for batch in images * 2:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()
        assert zeros(net) == count, make
    deploy.write(net.eval(), tmp_path / "float.onnx", image_shape=(3, 8, 8), pack=False)
    assert sum(int((array == 0).sum()) for array in initializers(tmp_path / "float.onnx")) == count
    permanent = make_permanent(copy_model(net))
    assert not masks_of(permanent) and zeros(permanent) == count

    quantized = compress_aug.quantize(net, images[0][:1], weights=8, activations=8, calibration=images)
    assert zeros(quantized) == count, "folded batch norms scale zeros to zeros"
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for batch in images:
        optimizer.zero_grad()
        quantized.train()(batch).square().mean().backward()
        optimizer.step()
    final = compress_aug.finalize(quantized.eval())
    assert zeros(final) == count and zeros(make_permanent(copy_model(final))) == count
    assert all(torch.equal(masks_of(final)[name], mask) for name, mask in before.items())
    deploy.write(final, tmp_path / "int8.onnx", image_shape=(3, 8, 8), pack=False)
    integers = [array for array in initializers(tmp_path / "int8.onnx") if array.dtype == np.int8]
    assert len(integers) == 3
    # What is masked is zero in the file; beside it, rounding makes zeros of the smallest weights.
    for array in integers:
        name = next(
            n for n, layer in prunable_layers(final).items() if tuple(layer.weight.shape) == array.shape
        )
        if name in before:
            assert not array[~before[name].numpy()].any()


def test_a_run_with_every_change_keeps_its_zeros(tmp_path):
    stages = [
        Prune(sparsity=0.5, method="random"),
        train(),
        Prune(sparsity=0.6),
        train(prune=Gradual(sparsity=Ramp(start=0.6, end=0.7))),
        Quantize(calibrate=32),
        train(),
    ]
    result = run(stages, tmp_path / "run")
    expected = round(0.7 * total(result.model)) / total(result.model)
    assert [row["sparsity"] for row in result.report["stages"][3:]] == [expected] * 3
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == result.report
    with pytest.raises(RunFolderError):
        run(stages[:2], tmp_path / "run", resume=True)


# ---------------------------------------------------------------- after a cut


CUT = PruneChannels(until={"ratio": 0.4}, round_to=2)


def test_layers_chosen_after_a_cut_are_judged_by_their_own_zeros(tmp_path):
    """The others' zeros are no reason to leave these dense."""
    stages = [Prune(sparsity=0.6, layers=["Conv2d"]), CUT, Prune(sparsity=0.5, layers=["8"])]
    result = run(stages, tmp_path / "run", model=tiny_net(width=16))
    last = effective_weight(prunable_layers(result.model)["8"])
    assert int((last == 0).sum()) == round(0.5 * last.numel())
    assert result.report["stages"][-1]["notes"] == []


def test_after_a_cut_layers_with_more_zeros_keep_them_and_are_named(tmp_path):
    stages = [Prune(sparsity=0.6, layers=["3"]), CUT, Prune(sparsity=0.5, scope="layer")]
    result = run(stages, tmp_path / "run", model=tiny_net(width=16))
    weights = {name: effective_weight(layer) for name, layer in prunable_layers(result.model).items()}
    found = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    assert found["3"] > 0.5 * weights["3"].numel()
    assert [found[name] for name in "08"] == [round(0.5 * weights[name].numel()) for name in "08"]
    (note,) = result.report["stages"][-1]["notes"]
    assert note.startswith("cutting channels left") and 'zeros of "3", more than asked for' in note
