"""Learned policies on images: arguments and bytes against Pillow's own calls, then the draw, then the schedule."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from test_augment import WORKING, random_batch, varied_images

from compress_aug.augment import (
    LearnedAugment,
    Operation,
    Plan,
    RandAugment,
    apply_plan,
    draw_policy,
    policy_arguments,
)
from compress_aug.augment.pillow import to_picture, to_tensor
from compress_aug.errors import RecipeError
from compress_aug.policies import ENTRIES, OPERATIONS, Policy, PolicySchedule, Segment

SIGNED = ("Rotate", "TranslateX", "TranslateY", "ShearX", "ShearY")


def reference(picture: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """The operation as Population Based Augmentation calls Pillow, with a sign that is given and not drawn."""

    def moved(*coefficients: float) -> Image.Image:
        return picture.transform(picture.size, Image.Transform.AFFINE, coefficients)

    share = level / 10
    calls = {
        "Rotate": lambda: picture.rotate(sign * int(share * 30)),
        "TranslateX": lambda: moved(1, 0, sign * int(share * 10), 0, 1, 0),
        "TranslateY": lambda: moved(1, 0, 0, 0, 1, sign * int(share * 10)),
        "ShearX": lambda: moved(1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "ShearY": lambda: moved(1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "Brightness": lambda: ImageEnhance.Brightness(picture).enhance(level * 1.8 / 10 + 0.1),
        "Color": lambda: ImageEnhance.Color(picture).enhance(level * 1.8 / 10 + 0.1),
        "Contrast": lambda: ImageEnhance.Contrast(picture).enhance(level * 1.8 / 10 + 0.1),
        "Sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(level * 1.8 / 10 + 0.1),
        "Posterize": lambda: ImageOps.posterize(picture, 4 - int(share * 4)),
        "Solarize": lambda: ImageOps.solarize(picture, 256 - int(level * 256 / 10)),
        "Invert": lambda: ImageOps.invert(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
    }
    return calls[name]()


def as_plan(name: str, level: int, sign: int, rows: int) -> Plan:
    """The operation as our policies make it: drawn alone and with certainty."""
    certain = np.where(np.array(ENTRIES) == name, 10, 0)
    drawn = draw_policy(np.arange(200), certain, np.full(30, level), height=32, width=32)
    operations = drawn.operations[drawn.operations != Operation.IDENTITY]
    assert len(set(operations.tolist())) == 1
    # PBA's translation by +1 moves the content left, ours, as torchvision's, right; the sign is drawn anyway.
    direction = -sign if name.startswith("Translate") else sign
    argument = policy_arguments()[OPERATIONS.index(name), level] * direction
    return Plan(np.full((rows, 1), operations[0]), np.full((rows, 1), argument))


@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Cutout"])
def test_operations_equal_pillow(name: str, size: tuple[int, int], executor: str) -> None:
    images = varied_images(3, *size)
    for level in range(10):
        for sign in (1, -1) if name in SIGNED else (1,):
            plan = as_plan(name, level, sign, len(images))
            expected = [to_tensor(reference(to_picture(image), name, level, sign)) for image in images]
            result = apply_plan(images, plan, executor=executor)
            assert torch.equal(result, torch.stack(expected)), (level, sign)


def test_arguments_are_those_of_the_paper() -> None:
    table = {name: policy_arguments()[n].tolist() for n, name in enumerate(OPERATIONS)}
    assert table["Rotate"] == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    assert table["TranslateX"] == table["TranslateY"] == list(range(10))
    assert table["ShearX"] == pytest.approx([0.03 * level for level in range(10)])
    assert table["Posterize"] == [4, 4, 4, 3, 3, 2, 2, 2, 1, 1]
    assert table["Solarize"] == [256, 231, 205, 180, 154, 128, 103, 77, 52, 26]
    assert table["Cutout"] == list(range(0, 20, 2))
    # A factor of 1 changes nothing: that is level 5. Level 0 is nearly black, or grey.
    assert table["Contrast"][5] == 1.0
    assert table["Brightness"] == pytest.approx([0.18 * level + 0.1 for level in range(10)])


# ---------------------------------------------------------------- the draw


def draw(count: int, tenths: int | list[int], level: int = 9, **key: int) -> Plan:
    probabilities = np.full(30, tenths) if isinstance(tenths, int) else np.array(tenths)
    return draw_policy(np.arange(count), probabilities, np.full(30, level), height=16, width=24, **key)


def fired(plan: Plan) -> NDArray[np.int64]:
    return (plan.operations != Operation.IDENTITY).sum(1)


def test_two_of_ten_images_get_nothing_three_one_and_five_two() -> None:
    counts = np.bincount(fired(draw(50_000, 10)), minlength=3) / 50_000
    assert counts == pytest.approx([0.2, 0.3, 0.5], abs=0.01)


def test_probabilities_are_those_of_the_entries() -> None:
    assert not fired(draw(1000, 0)).any()
    # One entry alone fires with its probability wherever an image may get any: 0.8 * 0.3.
    one = [0] * 30
    one[OPERATIONS.index("Rotate")] = 3
    plan = draw(50_000, one)
    assert fired(plan).mean() == pytest.approx(0.24, abs=0.01)
    assert set(np.unique(plan.operations)) == {Operation.IDENTITY, Operation.ROTATE}
    assert sorted(np.unique(plan.arguments[:, 0][plan.operations[:, 0] > 0]).tolist()) == [-27, 27]
    positive = plan.arguments[plan.operations > 0] > 0
    assert positive.mean() == pytest.approx(0.5, abs=0.02)


def test_entries_have_their_turn_in_random_order_and_both_copies_may_fire() -> None:
    plan = draw(60_000, 10)
    first = plan.operations[:, 0][fired(plan) > 0]
    share = np.bincount(first, minlength=len(Operation)) / len(first)
    kinds = [Operation.ROTATE, Operation.EQUALIZE, Operation.CUTOUT, Operation.COLOR, Operation.SHEAR_Y]
    assert share[kinds] == pytest.approx(np.full(5, 1 / 15), abs=0.005)
    # Invert and Solarize are one operation with different thresholds.
    assert share[Operation.SOLARIZE] == pytest.approx(2 / 15, abs=0.006)
    twice = (plan.operations[:, 0] == plan.operations[:, 1]) & (fired(plan) == 2)
    assert twice.sum() / (fired(plan) == 2).sum() == pytest.approx((15 * 1 + 2 * 2) / (15 * 29), abs=0.008)


def test_two_operations_have_two_directions() -> None:
    plan = draw(20_000, [10 * (name == "Rotate") for name in ENTRIES])
    both = plan.arguments[(plan.operations == Operation.ROTATE).all(1)] > 0
    assert len(both) > 5000
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.05


def test_the_draw_belongs_to_the_image() -> None:
    whole = draw(40, 7, epoch=3, seed=9)
    part = draw_policy(
        np.arange(10, 20), np.full(30, 7), np.full(30, 9), height=16, width=24, epoch=3, seed=9
    )
    assert np.array_equal(whole.operations[10:20], part.operations)
    assert np.array_equal(whole.all_places()[10:20], part.all_places())
    for key in ({"epoch": 4, "seed": 9}, {"epoch": 3, "seed": 8}, {"epoch": 3, "seed": 9, "candidate": 1}):
        assert not np.array_equal(draw(40, 7, **key).operations, whole.operations)


def test_squares_lie_anywhere_in_the_image() -> None:
    plan = draw(20_000, [10 * (name == "Cutout") for name in ENTRIES])
    first, second = (plan.all_places()[plan.operations == Operation.CUTOUT][n::2] for n in (0, 1))
    both = (plan.operations == Operation.CUTOUT).all(1)
    pairs = plan.all_places()[both].reshape(-1, 4).astype(float)
    assert len(pairs) > 1000
    assert np.abs(np.corrcoef(pairs.T)[np.triu_indices(4, 1)]).max() < 0.06, "two squares, two places"
    rows, columns = np.concatenate([first, second]).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 15, 0, 23)
    assert rows.mean() == pytest.approx(7.5, abs=0.1)
    assert not plan.all_places()[plan.operations != Operation.CUTOUT].any()


def test_policy_draws_are_pinned() -> None:
    # Changing these numbers changes what every stored seed means.
    plan = draw(4, 10, epoch=1, seed=2)
    assert plan.operations.tolist() == [[7, 2], [11, 10], [13, 12], [12, 4]]


# ---------------------------------------------------------------- the schedule


def schedule() -> PolicySchedule:
    """Nothing for 4 epochs, then one operation for 6."""
    invert = Policy.from_vector([0] * 10 + [10] + [0] * 49)
    return PolicySchedule(10, (Segment(4, Policy.none()), Segment(6, invert)))


def test_the_policy_of_the_epoch_is_used() -> None:
    batch = random_batch(60)
    augment = LearnedAugment(schedule(), epochs=5, crop_padding=0, flip=False)
    plain = augment(batch, None, 1, 0).images
    assert torch.equal(plain, batch.images)
    late = augment(batch, None, 2, 0).images
    same, inverted = ((late == image).flatten(1).all(1) for image in (batch.images, 255 - batch.images))
    assert (same | inverted).all()
    assert inverted.float().mean() == pytest.approx(0.8, abs=0.15)
    # The magnitude of the call belongs to RandAugment.
    assert torch.equal(augment(batch, 30, 2, 0).images, late)
    with pytest.raises(RecipeError, match=r"expected an epoch in 0\.\.4, found 5"):
        augment(batch, None, 5, 0)


def test_legacy_and_flatten_replay() -> None:
    batch = random_batch(400)
    legacy = LearnedAugment(schedule(), 3, replay="legacy", crop_padding=0, flip=False)
    # int(4 * 0.3) = 1 epoch of nothing, where proportional gives two.
    assert torch.equal(legacy(batch, None, 0, 0).images, batch.images)
    assert not torch.equal(legacy(batch, None, 1, 0).images, batch.images)
    flat = LearnedAugment(schedule(), 3, replay="flatten", crop_padding=0, flip=False)
    inverted = (flat(batch, None, 0, 0).images != batch.images).flatten(1).any(1)
    assert inverted.float().mean() == pytest.approx(0.6 * 0.8, abs=0.08)
    with pytest.raises(RecipeError, match='no replay "flat"'):
        LearnedAugment(schedule(), 3, replay="flat")
    with pytest.raises(RecipeError, match=r"schedule must be a PolicySchedule, .* it is a str"):
        LearnedAugment("learned.yaml", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no argument 'magnitude'"):
        LearnedAugment(schedule(), 3, magnitude=9)  # type: ignore[call-arg]


def test_crop_flip_and_cutout_follow_the_policy() -> None:
    batch = random_batch(50)
    settings = {"crop_padding": 2, "cutout": 4, "fill": (9, 8, 7)}
    none = PolicySchedule(1, (Segment(1, Policy.none()),))
    learned = LearnedAugment(none, 1, **settings)(batch, None, 0, 3)
    assert torch.equal(learned.images, RandAugment(**settings)(batch, None, 0, 3).images)
    assert learned.targets is batch.targets
