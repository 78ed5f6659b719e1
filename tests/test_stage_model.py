"""`model:` in recipes (a fresh net in place of the present one) and `variables`: runs, checkpoints, mistakes."""

import json
import textwrap

import pytest
import torch
from rich.console import Console
from toys import tiny_data

import compress_aug
from compress_aug import Distill, Keep, Model, Prune, Recipe, Train, checkpoint, models
from compress_aug.errors import ModelError, RecipeError, RunFolderError
from compress_aug.recipe import load_recipe, recipe_schema
from compress_aug.running.ahead import check_ahead
from compress_aug.surgery import replace_log, surgery_log

QUIET = Console(quiet=True)
STUDENT = Model(name="resnet8", arguments={"width": 4})


def train(**keys):
    return Train(epochs=1, batch_size=16, lr=0.05, precision="float32", **keys)


def run(stages, out, **keys):
    keys = {"model": "resnet14", "data": tiny_data(), "device": "cpu", "console": QUIET, **keys}
    return compress_aug.run(Recipe(stages, name="toy", model=keys.pop("model")), out=out, **keys)


def test_a_smaller_student_learns_from_a_larger_teacher(tmp_path) -> None:
    stages = [
        train(),
        Keep(name="teacher"),
        STUDENT,
        train(distill=Distill(teacher="teacher")),
        Prune(sparsity=0.5),
    ]
    result = run(stages, tmp_path / "run")
    sizes = [row["parameters"] for row in result.report["stages"]]
    assert sizes[2] == sizes[3] < sizes[0] / 4
    assert [entry["verb"] for entry in surgery_log(result.model)] == ["model", "mask"]
    found = compress_aug.load(tmp_path / "run")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(found.eval()(images), result.model.eval()(images))


def test_a_run_goes_on_behind_it_to_the_same_end(tmp_path) -> None:
    stages = [train(), Keep(name="teacher"), STUDENT, train(distill=Distill(teacher="teacher")), train()]
    whole = run(stages, tmp_path / "whole")
    run(stages[:4], tmp_path / "part")
    part = run(stages, tmp_path / "part", resume=True)
    assert part.report["stages"][4]["loss"] == whole.report["stages"][4]["loss"]
    further = run([train()], tmp_path / "further", model=None, start_from=tmp_path / "part")
    assert further.report["stages"][0]["parameters"] == part.report["stages"][4]["parameters"]


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path) -> None:
    one, again = (run([STUDENT], tmp_path / name).model.state_dict() for name in ("a", "b"))
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    other = compress_aug.run(
        Recipe([STUDENT], model="resnet14", seed=1),
        data=tiny_data(),
        out=tmp_path / "c",
        device="cpu",
        console=QUIET,
    )
    assert not torch.equal(one["conv1.weight"], other.model.state_dict()["conv1.weight"])


def test_no_checkpoint_runs_code(tmp_path) -> None:
    model = models.fresh_model("resnet8", {}, classes=4, image_shape=(3, 8, 8))
    surgery_log_of = model.surgery_log if hasattr(model, "surgery_log") else None
    assert surgery_log_of is not None
    path = tmp_path / "m.safetensors"
    surgery_log_of[0]["name"] = "os:getcwd"
    checkpoint.save(model, path)
    with pytest.raises(RunFolderError, match="without running code"):
        checkpoint.rebuild(models.load_model("resnet8", classes=4, image_shape=(3, 8, 8)), path)


def evil(**keys):
    raise AssertionError("a checkpoint has run code")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": {"name": f"{__name__}:evil"}}, '"name" is no argument'),
        ({"arguments": {"call": f"{__name__}:evil"}}, '"call" is no argument'),
        ({"arguments": [1]}, r"arguments \[1\], expected keys"),
        ({"image_shape": [3, 8]}, r"image_shape \[3, 8\], expected channels, height and width"),
        ({"image_shape": [3, 8, "8"]}, "expected channels, height and width"),
        ({"name": 5}, "name 5, expected a text"),
        ({"classes": "x"}, "classes 'x', expected a number"),
        ({"name": "torchvision:resnet18", "arguments": {"pretrained": True}}, "leave `pretrained` out"),
    ],
)
def test_an_entry_of_the_log_that_nobody_wrote_is_refused(tmp_path, change, message: str) -> None:
    model = models.fresh_model("resnet8", {}, classes=4, image_shape=(3, 8, 8))
    log = surgery_log(model)
    replace_log(model, [{**log[0], **change}])
    path = tmp_path / "m.safetensors"
    checkpoint.save(model, path)
    with pytest.raises(RunFolderError, match=message):
        checkpoint.rebuild(models.load_model("resnet8", classes=4, image_shape=(3, 8, 8)), path)


@pytest.mark.parametrize("key", ["name", "call"])
def test_no_argument_takes_the_place_of_the_name(key: str) -> None:
    with pytest.raises(ModelError, match="is no argument of a net"):
        models.fresh_model("resnet8", {key: f"{__name__}:evil"}, classes=4, image_shape=(3, 8, 8))
    with pytest.raises(ValueError, match="is no argument of a net"):
        Model(name="resnet8", arguments={key: f"{__name__}:evil"})


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained"])
def test_timm_opens_no_files(tmp_path, key: str) -> None:
    pytest.importorskip("timm")
    arguments = {key: str(tmp_path / "weights.pth")}
    with pytest.raises(ModelError, match=f"read from a file: leave `{key}` out"):
        models.fresh_model("timm:resnet18", arguments, classes=4, image_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Model(name="resnet21"), "did you mean .resnet"),
        (Model(name="resnet8", arguments={"widht": 4}), 'no argument "widht"; did you mean "width"'),
        (Model(name="torchvision:resnet81"), "did you mean"),
    ],
)
def test_unknown_nets_and_arguments_are_told_before_any_training(
    tmp_path, stage: Model, message: str
) -> None:
    with pytest.raises(ModelError, match=f"stage 1 .*{message}"):
        run([train(), stage, train()], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    recipe = Recipe([train(), stage], name="toy", model="resnet14")
    with pytest.raises(ModelError, match=message):
        compress_aug.check(recipe, data=tiny_data(), device="cpu", console=QUIET)


def test_looking_ahead_moves_no_random_numbers(tmp_path) -> None:
    recipe = Recipe([Model(name="resnet8")], name="toy", model="resnet14")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_ahead(recipe, tiny_data())
    assert torch.equal(torch.get_rng_state(), before)


def read(tmp_path, text, overrides=()):
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nmodel: resnet8\ndata: digits\n" + textwrap.dedent(text))
    return load_recipe(path, overrides)


def test_a_function_of_ones_own_is_refused_before_anything_runs(tmp_path) -> None:
    with pytest.raises(RecipeError, match="without running code"):
        read(tmp_path, 'stages:\n  - model: "my_nets:Small"\n')


VARIABLES = """
variables: {many: 3, level: 7}
stages:
  - train: {epochs: $many, augment: {magnitude: $level}}
  - repeat:
      rounds: [{level: 2}, {level: 1}]
      stages:
        - train: {epochs: $many, augment: {magnitude: $level}}
"""


def test_variables_stand_for_their_values(tmp_path) -> None:
    recipe = read(tmp_path, VARIABLES)
    assert [(stage.epochs, stage.augment.magnitude) for stage in recipe.stages] == [(3, 7), (3, 2), (3, 1)]
    other = read(tmp_path, VARIABLES, ["variables.many=5"])
    assert [stage.epochs for stage in other.stages] == [5, 5, 5]
    saved = tmp_path / "saved.yaml"
    recipe.save(saved)
    assert load_recipe(saved).stages == recipe.stages


EVERYWHERE = """
variables: {lr: 0.3, n: 2, high: 0.5, end: 0.4}
defaults: {train: {lr: $lr, epochs: $epochs}}
stages:
  - repeat:
      rounds: $n
      sparsity: {start: 0, end: $end}
      epochs: 3
      stages: [{prune: {sparsity: $sparsity}}, {train: {}}]
  - repeat:
      rounds: [{sparsity: $high, epochs: 4}]
      stages: [{prune: {sparsity: $sparsity}}, train, {search: {kind: magnitude, keep: a, train: {}}}]
"""


def test_variables_reach_defaults_and_the_rounds_of_a_repeat(tmp_path) -> None:
    """And what a repeat gives for its rounds reaches the defaults too."""
    stages = read(tmp_path, EVERYWHERE).stages
    assert [stage.sparsity for stage in stages if stage.word == "prune"] == [0.2, 0.4, 0.5]
    trained = [stage for stage in stages if stage.word == "train"]
    assert [(stage.lr, stage.epochs) for stage in trained] == [(0.3, 3), (0.3, 3), (0.3, 4)]
    assert (stages[-1].train.lr, stages[-1].train.epochs) == (0.3, 4)
    assert len(read(tmp_path, EVERYWHERE, ["variables.n=3"]).stages) == 9
    assert read(
        tmp_path, "variables: {all: {lr: 0.2}}\ndefaults: {train: $all}\nstages: [{train: {epochs: 1}}]\n"
    )
    assert read(tmp_path, "variables:\nstages:\n  - train: {epochs: 1}\n").stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variables: {many: 3}\nstages:\n  - train: {epochs: 2}\n", r"no stage uses \$many"),
        ("variables: {my-lr: 3}\nstages:\n  - train: {epochs: $my-lr}\n", '"my-lr" cannot be written as a'),
        (
            "stages:\n  - repeat: {rounds: [{a-b: 1}], stages: [{train: {epochs: 1}}]}\n",
            '"a-b" cannot be written as a',
        ),
        (
            "variables: {n: 2}\nstages:\n  - repeat: {rounds: $m, stages: [{train: {epochs: $n}}]}\n",
            'did you mean "n"|\\$m has no value',
        ),
        (
            "variables: {n: 2}\ndefaults: {train: {lr: $m}}\nstages:\n  - train: {epochs: $n}\n",
            r"defaults.*\$m has no value",
        ),
        ("variables: [3]\nstages:\n  - train: {epochs: 2}\n", "expected names and values"),
        ("variables: {many: 3}\nstages:\n  - train: {epochs: $mayn}\n", 'did you mean "many"'),
        ("stages:\n  - train: {epochs: $many}\n", "it comes from variables, or from the rounds of a repeat"),
    ],
)
def test_mistakes_in_variables_are_told(tmp_path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, text)


def test_the_schema_knows_both() -> None:
    text = json.dumps(recipe_schema())
    assert '"variables"' in text and '"Model"' in text


SEARCHED = """
variables: {which: student}
stages:
  - search: {kind: population, keep: teacher, only_if_used: true, train: {epochs: 6}}
  - search: {kind: population, keep: student, only_if_used: true, train: {epochs: 6}}
  - train: {epochs: 2, augment: {policy: $which}}
"""


@pytest.mark.parametrize(
    ("which", "kept"), [("student", ["student"]), ("teacher", ["teacher"]), ("none", [])]
)
def test_a_search_that_nothing_uses_is_left_out_and_it_is_said(tmp_path, which: str, kept: list[str]) -> None:
    recipe = read(tmp_path, SEARCHED, [f"variables.which={which}"])
    assert [stage.keep for stage in recipe.stages if stage.word == "search"] == kept
    told = [note for note in recipe.warnings() if "is left out" in note]
    assert len(told) == 2 - len(kept)
    assert recipe.stages[-1].augment.policy == (None if which == "none" else which)
