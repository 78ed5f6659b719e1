"""Recipes: what a file means, and that every mistake in it is told at once, with its line and the nearest word."""

import textwrap

import pytest

from compress_aug.errors import RecipeError
from compress_aug.recipe import Recipe, load_recipe, recipe_schema, with_choices
from compress_aug.schedule import Points, Ramp
from compress_aug.stages import Attach, Drop, Export, Keep, Model, Prune, Quantize, Stage, Train

HEAD = "version: 1\nmodel: resnet8\ndata: digits\n"


@pytest.fixture
def read(tmp_path):
    def read(stages, *overrides, head=HEAD):
        path = tmp_path / "mine.yaml"
        path.write_text(head + "stages:\n" + textwrap.indent(textwrap.dedent(stages), "  "))
        return load_recipe(path, overrides)

    return read


def problems_of(read, stages, *overrides, head=HEAD):
    with pytest.raises(RecipeError) as caught:
        read(stages, *overrides, head=head)
    return caught.value.problems


class Smooth(Stage):
    """A stage of a user's own, named in a recipe by a colon."""

    word = "smooth"
    alpha: float = 0.1


def test_stages_become_objects(read):
    recipe = read(
        """
        - train: {epochs: 2, augment: {magnitude: {start: 8, end: 2}}}
        - keep: teacher
        - attach: {blocks: 2}
        - drop
        - prune: {sparsity: 0.4, scope: layer}
        - quantize: {weights: 4, first_and_last: float}
        - train: {epochs: 1, distill: {teacher: teacher, weight: {start: 0.4, halve_every: 0.3}}}
        - export: {budget: {size_mb: 1}}
        """
    )
    kinds = [Train, Keep, Attach, Drop, Prune, Quantize, Train, Export]
    assert [type(stage) for stage in recipe.stages] == kinds
    assert recipe.stages[0].augment.magnitude == Ramp(start=8, end=2)
    assert recipe.stages[1].name == "teacher"
    assert (recipe.model, recipe.data, recipe.name) == ("resnet8", "digits", "mine")


def test_a_wrong_ramp_of_a_repeat_is_told_once(read):
    problems = problems_of(
        read,
        """
        - repeat:
            rounds: 3
            sparsity: {start: 0, end: 0.6, shape: cubik}
            stages:
              - prune: {sparsity: $sparsity}
        """,
    )
    assert len(problems) == 1 and 'did you mean "cubic"?' in problems[0]


def test_defaults_are_merged_key_by_key(read):
    recipe = read(
        """
        - train: {epochs: 1}
        - train: {epochs: 2, lr: 0.5, augment: {flip: true}}
        """,
        head=HEAD + "defaults: {train: {lr: 0.01, augment: {magnitude: {start: 3, end: 1}, flip: false}}}\n",
    )
    first, second = recipe.stages
    assert (first.lr, first.augment.flip) == (0.01, False)
    assert (second.lr, second.augment.flip) == (0.5, True)
    assert second.augment.magnitude == Ramp(start=3, end=1)


def test_a_schedule_in_a_stage_replaces_the_default_whole(read):
    recipe = read(
        "- train: {epochs: 1, augment: {magnitude: {by: sparsity, points: {0.0: 4}}}}\n",
        head=HEAD + "defaults: {train: {augment: {magnitude: {start: 3, end: 1}}}}\n",
    )
    assert recipe.stages[0].augment.magnitude == Points(by="sparsity", points={0.0: 4})


def test_repeat_with_rows_and_with_ramps_agree(read):
    rows = read(
        """
        - repeat:
            rounds: [{sparsity: 0.2, magnitude: 11}, {sparsity: 0.4, magnitude: 7}, {sparsity: 0.6, magnitude: 4}]
            stages:
              - prune: {sparsity: $sparsity}
              - train: {epochs: 1, augment: {magnitude: $magnitude}}
        """
    )
    ramps = read(
        """
        - repeat:
            rounds: 3
            sparsity: {start: 0, end: 0.6}
            magnitude: {start: 14, end: 4}
            stages:
              - prune: {sparsity: $sparsity}
              - train: {epochs: 1, augment: {magnitude: $magnitude}}
        """
    )
    assert [stage.sparsity for stage in rows.stages[::2]] == [0.2, 0.4, 0.6]
    assert rows.stages == ramps.stages


def test_nested_repeats_see_outer_columns_and_text_is_filled(read):
    recipe = read(
        """
        - repeat:
            rounds: [{s: 0.2}, {s: 0.4}]
            stages:
              - prune: {sparsity: $s}
              - repeat:
                  rounds: [{m: 3}, {m: 2}]
                  stages:
                    - train: {epochs: 1, augment: {magnitude: $m}}
              - export: {file: model-$s.onnx}
        """
    )
    assert [stage.word for stage in recipe.stages] == ["prune", "train", "train", "export"] * 2
    assert [s.file for s in recipe.stages if s.word == "export"] == ["model-0.2.onnx", "model-0.4.onnx"]


def test_overrides(read):
    recipe = read(
        "- train: {epochs: 5}\n", "stages.0.train.epochs=2", "stages.0.train.augment={magnitude: 9}", "seed=7"
    )
    assert recipe.stages[0].epochs == 2
    assert recipe.stages[0].augment.magnitude == 9.0
    assert recipe.seed == 7


def test_own_stage_by_colon_key(read):
    recipe = read(f'- "{__name__}:Smooth": {{alpha: 0.5}}\n')
    assert type(recipe.stages[0]).__name__ == "Smooth"
    assert recipe.stages[0].alpha == 0.5


def test_saved_and_read_again_it_is_equal(read, tmp_path):
    recipe = read(
        """
        - train: {epochs: 2, lr: 1e-3, augment: {magnitude: {by: sparsity, points: {0.0: 14, 0.5: 3}}}}
        - keep: teacher
        - quantize: {weights: 4, activations: float}
        - export
        """
    )
    recipe.save(tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_plan(read):
    rows = read(
        """
        - train: {epochs: 2, lr: 0.1, augment: {magnitude: 14}}
        - prune: {sparsity: 0.4}
        - quantize: {weights: 4, activations: 8}
        """
    ).plan()
    assert (
        rows[0]["epochs"] == "2" and rows[0]["magnitude"] == "14" and rows[0]["objective"] == "cross entropy"
    )
    assert rows[1]["sparsity"] == "40 %" and rows[1]["bits"] == "float"
    assert rows[2]["bits"] == "w4 a8" and rows[2]["sparsity"] == "40 %"


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("- train: {epochs: 2, augment: {magnitud: 3}}", 'unknown key "magnitud": did you mean "magnitude"?'),
        ("- train: {epoch: 2}", 'unknown key "epoch": did you mean "epochs"?'),
        ("- train: {epochs: ten}", 'expected a whole number, found "ten"'),
        ("- train: {epochs: true}", "expected a whole number, found True"),
        ("- train: {epochs: 0}", "expected a number of at least 1, found 0"),
        ("- train: {epochs: 1, freeze_scales: 90}", "expected a number of at most 1.0, found 90"),
        ("- train: {epochs: 1, lr: fast}", 'expected a number, found "fast"'),
        ("- train: {epochs: 1, optimizer: sdg}", 'did you mean "sgd"?'),
        (
            "- train: {epochs: 1, augment: {magnitude: 31}}",
            "expected a magnitude in 0..30 (or none), found 31",
        ),
        ("- train: {epochs: 1, augment: {magnitude: {start: 35, end: 2}}}", "in 0..30 (or none), found 35"),
        (
            "- train: {epochs: 1, augment: {magnitude: {strt: 5, end: 2}}}",
            'unknown key "strt": did you mean "start"?',
        ),
        (
            "- train: {epochs: 1, augment: {magnitude: 2.5}}",
            "expected a whole number for a constant magnitude",
        ),
        ("- prune: {sparsity: 1.0}", "expected a number below 1"),
        (
            "- prune: {sparsity: 0.4}\n- prune: {sparsity: 0.2}",
            "0.2 is lower than the 0.4 of an earlier stage",
        ),
        ("- drop", "drop: nothing is attached"),
        ("- attach\n- export", "additional layers are still attached"),
        ("- train: {epochs: 1, distill: {teacher: teacher}}", 'no model was kept under the name "teacher"'),
        ("- keep: big\n- train: {epochs: 1, distill: {teacher: bog}}", 'did you mean "big"?'),
        ("- train: {epochs: 1, augment: {magnitude: mine}}", 'no schedule was kept under the name "mine"'),
        ("- keep: none", "has a meaning of its own"),
        ("- keep: a\n- keep: a", "already"),
        ("- quantize: {weights: 1}", "expected 2..8 bits, or float, found 1"),
        ("- quantize: {weights: float, activations: float}", "nothing would be quantized"),
        ("- quantize\n- quantize", "quantized already"),
        ("- quantize\n- prune_channels: {until: {macs: 0.5}}", "must come before quantize"),
        (
            "- prune_channels: {until: {macs: 0.5, ratio: 0.2}}",
            "expected exactly one of ratio, parameters, macs",
        ),
        ("- export: {file: ../model.onnx}", "within the run's folder"),
        ("- export: {file: /tmp/model.onnx}", "within the run's folder"),
        ("- export: {file: model.txt}", "ends in .onnx"),
        ("- export\n- export", "already"),
        ("- export\n- export: {file: model.float.onnx}", '"model.float.onnx" is written already'),
        ("- export: {file: original.onnx}", '"original.onnx" is written already'),
        ('- export: {file: "[/x].onnx"}', "letters, digits"),
        ("- train: {epochs: 1, augment: {magnitude: {start: .nan, end: 4}}}", "expected a finite number"),
        (
            "- train: {epochs: 1, augment: {magnitude: {start: '14', end: 4}}}",
            'expected a number, found "14"',
        ),
        ("- trane: {epochs: 1}", 'unknown stage "trane": did you mean "train"?'),
        ('- "no_such_module:Stage": {}', 'no module "no_such_module"'),
        ('- "json:loads": {}', "is not a class derived from compress_aug.Stage"),
        ("- repeat: {rounds: 2, stages: [{prune: {sparsity: $s}}]}", "$s has no value"),
        (
            "- repeat: {rounds: [{s: 0.1, t: 2}], stages: [{prune: {sparsity: $s}}]}",
            "no stage of this repeat uses $t",
        ),
        ("- repeat: {rounds: 0, stages: [drop]}", "expected a list of rows or a number in 1..1000, found 0"),
        ("- train: {epochs: 1}\n  prune: {sparsity: 0.2}", "expected one stage"),
    ],
)
def test_mistakes(read, stages, told):
    problems = problems_of(read, stages)
    assert any(told in problem for problem in problems), problems
    assert all("mine.yaml, line" in problem for problem in problems), problems


def test_all_mistakes_are_told_at_once_with_their_lines(read):
    problems = problems_of(
        read,
        """
        - train: {epochs: 2, lrr: 0.1}
        - prune:
            sparsity: 2
        """,
        head="version: 2\nmodle: resnet8\n",
    )
    assert len(problems) == 4
    assert any("line 1, version" in p for p in problems)
    assert any("line 2, modle" in p and 'did you mean "model"?' in p for p in problems)
    assert any("line 5, stages.0.train.lrr" in p for p in problems)
    assert any("line 7, stages.1.prune.sparsity" in p for p in problems)


def test_a_mistake_in_defaults_points_there(read):
    (problem,) = problems_of(
        read,
        "- train: {epochs: 1}\n- train: {epochs: 2}\n",
        head=HEAD + "defaults:\n  train:\n    lr: fast\n",
    )
    assert "line 6, defaults.train.lr" in problem


def test_a_mistake_in_a_column_names_the_round(read):
    (problem,) = problems_of(
        read, "- repeat: {rounds: [{s: 0.5}, {s: 1.5}], stages: [{prune: {sparsity: $s}}]}\n"
    )
    assert "round 2" in problem and "found 1.5" in problem


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.0.train.epochs", "expected KEY=VALUE"),
        ("stages.3.train.epochs=1", "is a list of 0..0"),
        ("stage.0.train.epochs=1", 'did you mean "stages"?'),
        ("stages.0.trian.epochs=1", 'did you mean "train"?'),
        ("stages.0.train.epoch=1", 'did you mean "epochs"?'),
    ],
)
def test_mistakes_in_overrides(read, override, told):
    with pytest.raises(RecipeError) as caught:
        read("- train: {epochs: 1}\n", override)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["quikstart", "../quickstart", "nothing/like/it"])
def test_unknown_recipe(name):
    with pytest.raises(RecipeError, match="There is no recipe"):
        load_recipe(name)


def test_unknown_target(read):
    (problem,) = problems_of(read, "- drop: {}\n- export\n", head=HEAD + "target: raspbery_pi_4\n")[:1]
    assert 'did you mean "raspberry_pi_4"?' in problem


def test_recipes_in_code_are_checked_too():
    with pytest.raises(RecipeError, match=r"stages\.1\.prune"):
        Recipe([Prune(sparsity=0.5), Prune(sparsity=0.3)]).foresee()
    with pytest.raises(RecipeError, match="empty"):
        Recipe([]).foresee()


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([Prune(sparsity=0.5), Export()], "not one that runs faster"),
        ([Quantize(), Train(epochs=1, lr=0.1)], "begins at lr 0.1"),
        ([Quantize(), Train(epochs=1, lr=0.01)], "take 0.001 to 0.003, or batch_norm: keep"),
        ([Quantize(batch_norm="keep"), Train(epochs=1, lr=0.03)], "above 0.02 often ends at chance"),
        ([Train(epochs=1, augment={"magnitude": 4.0}), Train(epochs=1, augment={"magnitude": 9.0})], "rises"),
    ],
)
def test_what_is_legal_but_rarely_wanted_is_said(stages, told):
    (said,) = Recipe(stages, target="raspberry_pi_4").warnings()
    assert told in said


@pytest.mark.parametrize(
    "stages",
    [
        [Quantize(), Train(epochs=1, lr=0.003)],
        [Quantize(batch_norm="keep"), Train(epochs=1, lr=0.01)],
        [Quantize(scheme="dorefa", weights=4, activations=4), Train(epochs=1, lr=0.01)],
        [Train(epochs=1, lr=0.1), Quantize()],
        [Quantize(), Model(name="resnet8"), Train(epochs=1, lr=0.1)],
    ],
)
def test_learning_rates_that_a_quantized_net_bears_are_no_news(stages):
    assert Recipe(stages, target="raspberry_pi_4").warnings() == []


def test_shipped_recipes_have_no_warning_but_the_one_about_zeros():
    for name in ("quickstart", "inherit_layers", "qat_w4a4", "structured_int8"):
        # On a target of its own, for this machine's may have something to say of 8-bit weights.
        assert with_choices(load_recipe(name), target="raspberry_pi_4").warnings() == []
    assert len(load_recipe("iterative_prune").warnings()) == 1


def test_schema_knows_every_word_and_key():
    schema = recipe_schema()
    words = {
        next(iter(item["properties"]))
        for item in schema["$defs"]["stages"]["items"]["anyOf"]
        if item.get("required")
    }
    assert {"train", "prune", "attach", "keep", "quantize", "export", "repeat"} <= words
    assert set(schema["$defs"]["Train"]["properties"]) == set(Train.model_fields)
