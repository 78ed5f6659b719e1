"""Pictures of augmentation: the right images in the right cells, the right numbers in the curves, whole pixels."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from toys import tiny_data, tiny_images

from compress_aug.augment import (
    LearnedAugment,
    Operation,
    Plan,
    RandAugment,
    apply_plan,
    augment_images,
    magnitude_arguments,
)
from compress_aug.batch import Batch
from compress_aug.cli.foresight import stretches
from compress_aug.data import Data, MemorySource
from compress_aug.errors import DataError, RecipeError, UserError
from compress_aug.pictures.grid_drawing import draw_grid, sheet
from compress_aug.pictures.grids import (
    MAGNITUDES,
    Grid,
    Row,
    evenly,
    magnitudes_grid,
    operations_grid,
    policy_grid,
    policy_spans,
)
from compress_aug.pictures.magnitude_drawing import draw_magnitude, magnitude_curve
from compress_aug.pictures.paper import check_png, shortened, text_size
from compress_aug.pictures.policy_drawing import COLOURS, draw_policies, policy_bands
from compress_aug.pictures.samples import Samples, pick_samples
from compress_aug.pictures.timeline import Stretch, draw_timeline, spread
from compress_aug.pictures.words import argument_words
from compress_aug.policies import OPERATIONS, Policy, PolicySchedule, Segment, curves
from compress_aug.recipe import Recipe
from compress_aug.schedule import Halving, Points, Ramp
from compress_aug.stages import Augment, Keep, Prune, PruneChannels, Quantize, Stage, Train


def data_of(targets, classes="abcd"):
    images, _ = tiny_images(len(targets))
    source = MemorySource(images, torch.tensor(targets), torch.arange(100, 100 + len(targets)))
    whole = tiny_data()
    return Data(**{**vars(whole), "train": source, "classes": tuple(classes)})


def policy(**entries):
    """A policy in which both copies of these operations have (probability in tenths, magnitude)."""
    half = [number for name in OPERATIONS for number in entries.get(name, (0, 0))]
    return Policy.from_vector(half * 2)


def pixels(file, mode="RGB"):
    """A picture as it was written, (height, width, 3) or (height, width)."""
    with Image.open(file) as image:
        return np.asarray(image.convert(mode))


@pytest.fixture
def samples():
    return pick_samples(tiny_data(size=16), 6)


def test_samples_are_spread_over_the_classes():
    picked = pick_samples(data_of([0, 0, 0, 0, 2, 2, 1, 3, 0]), 6)
    assert picked.names == ("a", "a", "b", "c", "c", "d"), "the first of each class, then the second of each"
    assert picked.batch.index.tolist() == [100, 101, 106, 104, 105, 107]
    assert picked.describe() == "6 training images of all 4 classes of tiny"
    assert pick_samples(data_of([0, 0, 2, 1, 3]), 2).names == ("a", "c"), (
        "as many classes as there are images"
    )


def test_a_rare_class_is_no_reason_to_show_fewer():
    assert pick_samples(data_of([0, 0, 0, 1, 0, 0]), 5).names == ("a", "a", "a", "a", "b")
    assert pick_samples(data_of([0] * 5, classes="ab"), 2).describe() == (
        "2 training images of 1 of the 2 classes of tiny"
    )


@pytest.mark.parametrize("count", [0, 65])
def test_more_samples_than_images(count):
    with pytest.raises(
        DataError, match=f"tiny has 64 training images: expected samples in 1..64, found {count}"
    ):
        pick_samples(tiny_data(), count)


def test_each_operation_alone_directions_in_turns(samples):
    grid = operations_grid(samples, 20, fill=7)
    images = samples.batch.images
    assert [row.name for row in grid.rows[:4]] == ["original", "Identity", "ShearX", "ShearY"]
    assert len(grid.rows) == 15 and grid.columns == samples.names
    assert np.array_equal(grid.rows[0].images, images.numpy())
    for row, operation in ((grid.rows[4], Operation.TRANSLATE_X), (grid.rows[6], Operation.ROTATE)):
        for place, image in enumerate(images):
            argument = magnitude_arguments(16, 16)[operation, 20, place % 2]
            plan = Plan(np.array([[int(operation)]]), np.array([[argument]]))
            assert np.array_equal(row.images[place], apply_plan(image[None], plan, fill=7)[0].numpy())
    moved = grid.rows[4].images
    assert (moved[0, :, :, :4] == 7).all() and (moved[1, :, :, -4:] == 7).all(), "right, then left"


def test_magnitudes_are_what_randaugment_does_in_the_first_epoch(samples):
    grid = magnitudes_grid(samples, seed=3, fill=(1, 2, 3))
    assert [row.name for row in grid.rows] == ["original", *(f"M = {level}" for level in MAGNITUDES)]
    for row, level in zip(grid.rows[1:], MAGNITUDES, strict=True):
        augment = RandAugment(crop_padding=0, flip=False, fill=(1, 2, 3))
        assert np.array_equal(row.images, augment(samples.batch, level, 0, 3).images.numpy())
    other = augment_images(samples.batch.images, 30, index=samples.batch.index, seed=4)
    assert not np.array_equal(grid.rows[-1].images, other.numpy())


def test_columns_name_the_operations_that_were_drawn(samples):
    grid = magnitudes_grid(samples, (0, 30), seed=3)
    plan = RandAugment(crop_padding=0, flip=False).draw_operations(
        samples.batch.index.numpy(), 30, height=16, width=16, epoch=0, seed=3
    )
    for column, name, drawn in zip(grid.columns, samples.names, plan.operations.tolist(), strict=True):
        said = column.split("\n")
        assert said[0] == name
        assert [one.upper() for one in said[1:]] == [Operation(one).name.replace("_", "") for one in drawn]


def test_policy_rows_are_the_first_epochs_of_policies(samples):
    strong = policy(Rotate=(10, 9), Invert=(8, 0))
    schedule = PolicySchedule(
        9, (Segment(4, Policy.none()), Segment(3, strong), Segment(2, policy(Color=(5, 0))))
    )
    grid = policy_grid(samples, schedule, name="mine", seed=1, fill=9)
    assert [(row.name, row.words) for row in grid.rows[1:]] == [
        ("epochs 0 to 3", "no operations"),
        ("epochs 4 to 6", "mostly Rotate, Invert"),
        ("epochs 7 to 8", "mostly Color"),
    ]
    augment = LearnedAugment(schedule, 9, crop_padding=0, flip=False, fill=9)
    for row, epoch in zip(grid.rows[1:], (0, 4, 7), strict=True):
        assert np.array_equal(row.images, augment(samples.batch, None, epoch, 1).images.numpy())
    assert np.array_equal(grid.rows[1].images, grid.rows[0].images)
    assert not np.array_equal(grid.rows[2].images, grid.rows[0].images)


def test_a_long_schedule_shows_eight_of_its_policies():
    segments = tuple(Segment(2, policy(Rotate=(n % 11, n % 10))) for n in range(30))
    schedule = PolicySchedule(60, segments)
    grid = policy_grid(pick_samples(tiny_data(), 2), schedule)
    assert len(grid.rows) == 9 and "8 of its 30 policies" in grid.note
    assert grid.rows[1].name == "epochs 0 to 1" and grid.rows[-1].name == "epochs 58 to 59"
    assert [first for first, _, _ in policy_spans(schedule)] == list(range(0, 60, 2))
    assert evenly(8, 8) == list(range(8)) and evenly(9, 8)[-1] == 8


@pytest.mark.parametrize(
    ("operation", "magnitude", "words"),
    [
        (Operation.ROTATE, 14, "±14°"),
        (Operation.TRANSLATE_X, 14, "±6 px"),
        (Operation.TRANSLATE_Y, 2, "±0 px: no change"),
        (Operation.SHEAR_X, 30, "±0.30 (±17°)"),
        (Operation.COLOR, 14, "×1.42 / ×0.58"),
        (Operation.POSTERIZE, 14, "6 bits"),
        (Operation.SOLARIZE, 14, "inverts ≥ 136"),
        (Operation.EQUALIZE, 0, "has no magnitude"),
        (Operation.IDENTITY, 30, "no change"),
    ],
)
def test_arguments_in_words(operation, magnitude, words):
    assert argument_words(operation, magnitude, height=32, width=32) == words


def test_the_threshold_that_is_named_is_the_first_that_is_inverted():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for magnitude in range(31):
        argument = magnitude_arguments(16, 16)[Operation.SOLARIZE, magnitude, :1]
        plan = Plan(np.array([[int(Operation.SOLARIZE)]]), argument[None])
        changed = (apply_plan(images, plan) != images).flatten().nonzero().flatten()
        said = argument_words(Operation.SOLARIZE, magnitude, height=16, width=16)
        assert said == f"inverts ≥ {int(changed[0])}"


def test_every_pixel_of_the_sheet_stands_in_the_file(tmp_path, samples):
    grid = operations_grid(samples)
    written = pixels(draw_grid(grid, tmp_path / "a.png"))
    images = sheet(grid)
    assert images.shape == (15 * 100 - 4 + 10, 6 * 100 - 4, 3), (
        "16 pixels six times as large, gaps of 4, and 10 once"
    )
    bottom, right = written.shape[0] - 18, written.shape[1] - 18
    assert np.array_equal(written[bottom - images.shape[0] : bottom, right - images.shape[1] : right], images)
    assert (written[-18:] == 255).all() and (written[:, -18:] == 255).all(), "nothing runs over the edge"
    second = sheet(grid)[0:96, 100:196]
    assert np.array_equal(second[::6, ::6].transpose(2, 0, 1), samples.batch.images[1].numpy())


def test_nothing_is_cut_off_with_one_narrow_column_and_long_names(tmp_path):
    images = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0]), torch.tensor([0]))
    long = "a class with a name that nobody wants to type"
    grid = operations_grid(Samples(batch, (long,), 1, (0.3,) * 3, "a data set with a long name " * 4))
    written = pixels(draw_grid(grid, tmp_path / "a.png"), "L")
    for edge in (written[:12], written[-12:], written[:, :12].T, written[:, -12:].T):
        assert (edge == 255).all()


def test_grey_is_grey_and_large_images_shrink_to_means():
    grey = np.arange(8, dtype=np.uint8).reshape(1, 1, 2, 4) * 10
    drawn = sheet(Grid("", "", (Row("", "", grey),), ("a",)))
    assert drawn.shape == (48, 96, 3) and np.ptp(drawn, axis=2).max() == 0
    assert np.array_equal(drawn[::24, ::24, 0], grey[0, 0])
    large = np.zeros((1, 3, 200, 300), dtype=np.uint8)
    large[0, :, :2, :4] = 200
    drawn = sheet(Grid("", "", (Row("", "", large),), ("a",)))
    assert drawn.shape == (50, 75, 3), "the longer side takes at most 96 pixels"
    assert drawn[0, 0].tolist() == [100] * 3 and drawn[1:].max() == 0


def test_bands_are_the_curves_with_equal_epochs_together():
    first, second = policy(Rotate=(5, 4), Cutout=(10, 8)), policy(Rotate=(10, 2), Equalize=(10, 0))
    segments = (Segment(3, Policy.none()), Segment(2, first), Segment(5, second))
    bands = policy_bands(curves(PolicySchedule(10, segments)))
    assert bands.edges.tolist() == [0, 3, 5, 10]
    names = list(COLOURS)
    assert sorted(names) == sorted(OPERATIONS)
    rotate, cutout, equalize = (names.index(name) for name in ("Rotate", "Cutout", "Equalize"))
    assert bands.probability[rotate].tolist() == [0, 0.25, 0.5]
    assert bands.probability[cutout].tolist() == [0, 0.5, 0]
    assert bands.probability.sum(0).tolist() == [0, 0.75, 1]
    assert bands.magnitude[rotate, 1:].tolist() == [4, 2]
    assert bands.magnitude[equalize, 2] == 0 and np.isnan(bands.magnitude[equalize, :2]).all()


@pytest.mark.parametrize("segments", [(Segment(4, Policy.none()),), (Segment(1, policy(Rotate=(3, 3))),)])
def test_any_schedule_can_be_drawn(tmp_path, segments):
    schedule = PolicySchedule(sum(segment.epochs for segment in segments), segments)
    file = draw_policies(curves(schedule), tmp_path / "a.png", title="a" * 300, note="b" * 500)
    assert pixels(file).shape == (1078, 1210, 3)


def test_a_magnitude_is_rounded_and_below_one_is_none():
    curve = magnitude_curve(Ramp(start=8, end=0), points=17)
    assert curve.at.tolist() == [n / 16 for n in range(17)] and curve.by == "progress"
    expected = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    assert curve.magnitude[:16].tolist() == expected and math.isnan(curve.magnitude[16])
    assert curve.exact[4] == pytest.approx(6.0)
    assert magnitude_curve(Halving(start=16, halve_every=0.5), 3).magnitude.tolist() == [16, 8, 8], (
        "no step is taken once a stage is over"
    )


def test_a_magnitude_read_from_the_model_is_drawn_over_what_it_is_read_from():
    curve = magnitude_curve(Points(by="bits", points={32: 14, 4: 6, 2: 2}), points=32)
    assert curve.by == "bits" and curve.at[[0, -1]].tolist() == [1, 32]
    assert curve.magnitude[[0, 1, 2, 3, -1]].tolist() == [2, 2, 4, 6, 14]
    assert magnitude_curve(Points(by="sparsity", points={0.5: 3})).at[[0, -1]].tolist() == [0, 1]


@pytest.mark.parametrize(
    "given", [0.0, Ramp(start=1, end=0), Points(by="parameters", points={1.0: 14, 0.2: 0})], ids=str
)
def test_any_magnitude_can_be_drawn(tmp_path, given):
    file = draw_magnitude(given, tmp_path / "a.png", title="t", note="n")
    assert pixels(file).shape == (539, 990, 3)


class Own(Stage):
    word = "own"

    def foresee(self, outlook):
        from dataclasses import replace

        return replace(outlook, epochs=outlook.epochs + 5)


def test_a_recipe_in_numbers():
    by_sparsity = Augment(magnitude=Points(by="sparsity", points={0.0: 14, 0.5: 4}))
    by_bits = Augment(magnitude=Points(by="bits", points={32: 14, 4: 6}))
    by_parameters = Augment(magnitude=Points(by="parameters", points={1.0: 9}))
    recipe = Recipe(
        [
            Train(epochs=3, augment=Augment(magnitude=Ramp(start=4, end=0))),
            Keep(name="teacher"),
            Prune(sparsity=0.25),
            Train(epochs=2, augment=by_sparsity),
            Train(epochs=1, augment=Augment(filter={"teacher": "teacher"})),
            Train(epochs=1),
            PruneChannels(until={"macs": 0.5}),
            Train(epochs=1, augment=by_sparsity),
            Quantize(weights=4, activations=4),
            Train(epochs=1, augment=by_bits),
            Train(epochs=1, augment=by_parameters),
            Own(),
        ]
    )
    found = stretches(recipe)
    assert [one.epochs for one in found] == [3, 0, 0, 2, 1, 1, 0, 1, 0, 1, 1, 5]
    assert [one.number for one in found] == list(range(12)) and found[2].title == "prune to 25 %"
    ramp = found[0].magnitudes
    assert ramp[0] == 4 and ramp[-1] is None and ramp[len(ramp) // 2] == 2
    assert set(found[3].magnitudes) == {9}, "half the way to a sparsity of 50 %"
    assert found[4].kind == "random" and set(found[4].magnitudes) == {30}
    assert set(found[5].magnitudes) == {None} and found[5].words == "none"
    assert found[7].kind == "unknown", "of channels that are cut nobody knows the zeros"
    assert set(found[9].magnitudes) == {6} and found[9].words == "by bits, nominal"
    assert found[10].kind == "unknown" and found[10].magnitudes == ()
    assert found[11].kind == "unknown"


def test_names_are_spread_without_changing_places():
    places = spread([0, 50, 50, 50, 90, 100], 10, 100)
    assert places == [0, 50, 60, 70, 90, 100]
    assert spread([95, 96, 97], 10, 100) == [80, 90, 100]
    crowded = spread([5.0] * 30, 10, 100)
    assert np.diff(crowded).min() >= 10 and crowded[0] >= 0, "beyond the end, if all must be"
    assert spread([], 10, 100) == []


def test_a_crowded_timeline_gets_wider_and_nothing_leaves_it(tmp_path):
    row = [Stretch(0, "train", 10, "policy", words="policy a.yaml"), Stretch(1, "train", 10, "unknown")]
    for number in range(2, 120, 2):
        row += [
            Stretch(number, f"prune to {number} %"),
            Stretch(number + 1, "train", 1, "random", [number % 30, None]),
        ]
    short = pixels(draw_timeline(row[:2], tmp_path / "short.png", title="t", note="n"))
    written = pixels(draw_timeline(row, tmp_path / "long.png", title="t", note="n"), "L")
    assert short.shape[1] == 1056 and written.shape[1] > 1400
    for edge in (written[:8], written[-8:], written[:, :8].T, written[:, -8:].T):
        assert (edge == 255).all()


def test_the_same_picture_is_the_same_bytes(tmp_path, samples):
    first, second = (draw_grid(magnitudes_grid(samples), tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert first == second


def test_only_a_png_is_overwritten(tmp_path):
    file = draw_magnitude(3.0, tmp_path / "a.png", title="t", note="n")
    assert check_png(file) == file
    (tmp_path / "notes.png").write_text("my notes")
    (tmp_path / "folder.png").mkdir()
    for name, told in (
        ("notes.png", "is no PNG, so it is not overwritten"),
        ("folder.png", "is no PNG, so it is not overwritten"),
        ("a.jpg", "let the name end in .png"),
        ("none/a.png", "There is no folder"),
    ):
        with pytest.raises(UserError, match=told):
            draw_magnitude(3.0, tmp_path / name, title="t", note="n")
    assert (tmp_path / "notes.png").read_text() == "my notes"


@pytest.mark.parametrize("wrong", [{"magnitude": 31}, {"fill": 300}, {"interpolation": "cubic"}], ids=str)
def test_settings_that_are_none(samples, wrong):
    with pytest.raises(RecipeError):
        operations_grid(samples, **wrong)


def test_a_text_is_shortened_only_as_far_as_needed():
    figure = Figure(dpi=110)
    for width in (30, 60, 100):
        short = shortened(figure, "abcdefghijklmnopqrstuvwxyz", width)
        longer = "abcdefghijklmnopqrstuvwxyz"[: len(short)] + "…"
        assert short.endswith("…") and text_size(figure, short)[0] <= width < text_size(figure, longer)[0]
    assert shortened(figure, "abc", 500) == "abc"
