"""Targets whose int8 kernels saturate: 7-bit weights from the start, said before, during and after the run."""

import json

import pytest
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Export, Quantize, Recipe, Train
from compress_aug.errors import QuantizeError, RecipeError
from compress_aug.quantization import unsigned_bits, weight_bits
from compress_aug.stages.saturation import has_8_bit_weights

KEYS = {"model": tiny_net(), "data": tiny_data(), "console": Console(quiet=True)}
WHY = "weights get 7 bits instead of 8 from the start of training, because old adds int8 products with saturation"


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "name: old\ndescription: an old processor\nruntime: onnxruntime\nthreads: 1\nround_to: 8\n"
        "proxy: true\nint8_saturates: true\n"
    )
    return str(path)


def test_the_plan_says_seven_bits_and_why(old):
    stages = [Train(epochs=1), Quantize(), Train(epochs=1, lr=0.003)]
    recipe = Recipe(stages, target=old)
    assert [row["bits"] for row in recipe.plan()] == ["float", "w7 a8", "w7 a8"]
    (said,) = recipe.warnings()
    assert said.startswith(WHY) and said.endswith("activations keep theirs")
    other = Recipe(stages, target="raspberry_pi_4")
    assert [row["bits"] for row in other.plan()] == ["float", "w8 a8", "w8 a8"] and not other.warnings()


@pytest.mark.parametrize(
    "options",
    [{"weights": 7}, {"weights": 4, "first_and_last": 7}, {"weights": 4, "overrides": {"0": {"weights": 7}}}],
)
def test_dorefa_weights_of_seven_bits_are_refused(old, options):
    stage = Quantize(scheme="dorefa", activations=4, **options)
    with pytest.raises(RecipeError, match="DoReFa weights of 7 bits are integers of 8"):
        Recipe([stage], target=old).foresee()
    assert Recipe([stage], target="raspberry_pi_4").foresee()


def test_a_run_that_goes_on_from_another_has_the_bits_of_its_own_target(old):
    (after,) = Recipe([Quantize()], target=old).foresee()
    (further,) = Recipe([Train(epochs=1)], target="raspberry_pi_4").foresee(after)
    assert after.int8_saturates and after.weight_bits == further.weight_bits == 7
    assert not further.int8_saturates


@pytest.mark.parametrize(
    ("stage", "has"),
    [
        (Quantize(weights=8), True),
        (Quantize(weights=4), True),  # the first and the last layer have 8
        (Quantize(weights=4, first_and_last=6), False),
        (Quantize(weights="float", first_and_last=8), False),
        (Quantize(weights=4, first_and_last="float"), False),
        (Quantize(weights=4, first_and_last=4, overrides={"0": {"weights": 8}}), True),
        (Quantize(weights=4, first_and_last=4, overrides={"0": {"activations": 8}}), False),
        (Quantize(bits="auto", size_mb=1.0, choices=[2, 4], first_and_last="auto"), False),
        (Quantize(bits="auto", size_mb=1.0), True),
    ],
)
def test_what_has_8_bit_weights(stage, has):
    assert has_8_bit_weights(stage) is has


JETSON = "activations (and the weights of the first and the last layer) get 7 bits instead of 8"


def test_signed_integers_only_are_told_as_saturation_is():
    stages = [Quantize(), Train(epochs=1, lr=0.001)]
    recipe = Recipe(stages, target="jetson")
    assert [row["bits"] for row in recipe.plan()] == ["w8 a7", "w8 a7"]
    (said,) = recipe.warnings()
    assert said.startswith(JETSON) and "jetson" in said
    few = Recipe([Quantize(weights=4, activations=4, first_and_last=7)], target="jetson")
    assert few.plan()[0]["bits"] == "w4 a4" and not few.warnings()
    overridden = Quantize(weights=4, activations=4, first_and_last=7, overrides={"0": {"activations": 8}})
    assert Recipe([overridden], target="jetson").warnings()


def test_a_run_for_signed_integers_does_what_the_plan_says_and_another_is_refused(tmp_path):
    stages = [Quantize(calibrate=32), Export()]
    signed = compress_aug.run(
        Recipe(stages, name="toy"), out=tmp_path / "7", target="jetson", device="cpu", **KEYS
    )
    row = signed.report["stages"][0]
    assert row["title"] == "quantize w8 a7" and any(note.startswith(JETSON) for note in row["notes"])
    assert activation_bits(signed.model) == [7] and unsigned_bits(signed.model) == {7}
    assert compress_aug.export_again(signed.folder, target="jetson", file="again.onnx", **KEYS)
    other = compress_aug.run(
        Recipe(stages, name="toy", target="raspberry_pi_4"), out=tmp_path / "8", device="cpu", **KEYS
    )
    before = sorted(path.name for path in other.folder.iterdir())
    with pytest.raises(
        QuantizeError, match=r"activations of 7 bits.*run the recipe again with --target jetson"
    ):
        compress_aug.export_again(other.folder, target="jetson", file="again.onnx", **KEYS)
    assert sorted(path.name for path in other.folder.iterdir()) == before


def activation_bits(model):
    return sorted(
        {
            int(module.act_quant.bit_width())
            for name, module in model.named_modules()
            if name.startswith("activation_quantizers.") and name.count(".") == 1
        }
    )


def test_overrides_and_ends_are_lowered_too_and_activations_never(old, tmp_path):
    overrides = {"3": {"weights": 8, "activations": 8}, "8": {"weights": 5}}
    stage = Quantize(weights=4, activations=6, overrides=overrides, calibrate=32)
    result = compress_aug.run(
        Recipe([stage], name="toy"), out=tmp_path / "run", target=old, device="cpu", **KEYS
    )
    assert weight_bits(result.model) == {"0": 7, "3": 7, "8": 5}
    assert activation_bits(result.model) == [6, 8]
    assert any(note.startswith(WHY) for note in result.report["stages"][0]["notes"])
    again = compress_aug.load(result.folder, model=tiny_net())
    assert weight_bits(again) == weight_bits(result.model)


def test_dorefa_is_judged_by_the_integers_of_its_file(old, tmp_path):
    """Seven bits of DoReFa are odd integers of eight."""
    stages = [Quantize(scheme="dorefa", weights=7, activations=7, calibrate=32), Export()]
    result = compress_aug.run(
        Recipe(stages, name="toy", target="raspberry_pi_4"), out=tmp_path / "run", device="cpu", **KEYS
    )
    with pytest.raises(QuantizeError, match="these have 8 in the file"):
        compress_aug.export_again(result.folder, target=old, file="again.onnx", **KEYS)


def test_a_run_trains_with_seven_bits_and_exports_for_that_target_only(old, tmp_path):
    stages = [Quantize(calibrate=32), Train(epochs=1, batch_size=16, lr=0.001), Export()]
    result = compress_aug.run(
        Recipe(stages, name="toy"), out=tmp_path / "seven", target=old, device="cpu", **KEYS
    )
    assert set(weight_bits(result.model).values()) == {7} and activation_bits(result.model) == [8]
    report = json.loads((result.folder / "report.json").read_text())
    row = report["stages"][0]
    assert row["title"] == "quantize w7 a8" and row["bits"]["weights"] == 7
    assert any(note.startswith(WHY) for note in row["notes"])
    assert report["target"]["int8_saturates"] is True
    # 7 bits are fine for both kinds of target, 8 only for one.
    for target in (old, "raspberry_pi_4"):
        assert compress_aug.export_again(result.folder, target=target, file="again.onnx", **KEYS)["target"]
    eight = compress_aug.run(
        Recipe(stages, name="toy", target="raspberry_pi_4"), out=tmp_path / "eight", device="cpu", **KEYS
    )
    assert set(weight_bits(eight.model).values()) == {8}
    before = sorted(path.name for path in eight.folder.iterdir())
    with pytest.raises(QuantizeError) as told:
        compress_aug.export_again(eight.folder, target=old, file="again.onnx", **KEYS)
    assert "old adds int8 products with saturation" in str(told.value)
    assert "needs weights of 7 bits from the start of training, these have 8 in the file" in str(told.value)
    assert f"run the recipe again with --target {old}" in str(told.value)
    assert sorted(path.name for path in eight.folder.iterdir()) == before
