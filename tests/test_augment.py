"""Augmentation: every byte against torchvision on Pillow images, then the draws, then the errors."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import RandAugment as ReferenceRandAugment
from torchvision.transforms.v2 import functional as F

import compress_aug.augment as augment
from compress_aug.augment import (
    Operation,
    Plan,
    RandAugment,
    Stream,
    apply_plan,
    augment_images,
    check_magnitude,
    crop_and_flip,
    draw_crop_flip,
    draw_cutout,
    draw_magnitudes,
    draw_plan,
    draw_words,
    grouped,
    magnitude_arguments,
)
from compress_aug.augment.draws import below, philox
from compress_aug.batch import Batch
from compress_aug.errors import DataError, RecipeError, UserError
from compress_aug.native import kernels

TORCHVISION_NAMES = {
    "Identity": Operation.IDENTITY,
    "ShearX": Operation.SHEAR_X,
    "ShearY": Operation.SHEAR_Y,
    "TranslateX": Operation.TRANSLATE_X,
    "TranslateY": Operation.TRANSLATE_Y,
    "Rotate": Operation.ROTATE,
    "Brightness": Operation.BRIGHTNESS,
    "Color": Operation.COLOR,
    "Contrast": Operation.CONTRAST,
    "Sharpness": Operation.SHARPNESS,
    "Posterize": Operation.POSTERIZE,
    "Solarize": Operation.SOLARIZE,
    "AutoContrast": Operation.AUTO_CONTRAST,
    "Equalize": Operation.EQUALIZE,
}


# What works here: the compiled one is left out where it was not built, and test_native.py says so.
WORKING = ["torch", "pillow", *(["compiled"] if kernels() else [])]


def varied_images(channels: int, height: int, width: int) -> Tensor:
    """Noise, low contrast, a ramp, one colour, four levels, half saturated, nearly constant, smooth."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, channels, height, width), generator=generator, dtype=torch.uint8)
    images[1] = images[1] // 4 + 60
    images[2] = (torch.arange(width) * 255 // width).to(torch.uint8)
    images[3] = 77
    images[4] = images[4] // 64 * 64
    images[5, :, : height // 2] = 255
    images[6] = 200
    images[6, 0, height // 2, width // 2] = 9
    coarse = torch.rand(1, channels, 4, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images[7] = smooth[0].to(torch.uint8)
    return images


def reference_arguments(name: str, magnitude: int, negative: bool, height: int, width: int) -> float:
    values, signed = ReferenceRandAugment._AUGMENTATION_SPACE[name]
    table = values(31, height, width)
    value = float(table[magnitude]) if table is not None else 0.0
    return -value if signed and negative else value


def reference_operation(
    image: Image,
    name: str,
    value: float,
    fill: int | tuple[int, ...] | None = None,
    interpolation: str = "nearest",
) -> Image:
    """What torchvision's RandAugment does to a Pillow image, by its public functions."""
    mode = InterpolationMode(interpolation)

    def affine(translate: list[int], shear: list[float], center: list[float] | None) -> Image:
        return F.affine(image, 0.0, translate, 1.0, shear, interpolation=mode, fill=fill, center=center)

    degrees = math.degrees(math.atan(value))
    operations = {
        "Identity": lambda: image,
        "ShearX": lambda: affine([0, 0], [degrees, 0.0], [0.0, 0.0]),
        "ShearY": lambda: affine([0, 0], [0.0, degrees], [0.0, 0.0]),
        "TranslateX": lambda: affine([int(value), 0], [0.0, 0.0], None),
        "TranslateY": lambda: affine([0, int(value)], [0.0, 0.0], None),
        "Rotate": lambda: F.rotate(image, value, interpolation=mode, fill=fill),
        "Brightness": lambda: F.adjust_brightness(image, 1.0 + value),
        "Color": lambda: F.adjust_saturation(image, 1.0 + value),
        "Contrast": lambda: F.adjust_contrast(image, 1.0 + value),
        "Sharpness": lambda: F.adjust_sharpness(image, 1.0 + value),
        "Posterize": lambda: F.posterize(image, int(value)),
        "Solarize": lambda: F.solarize(image, 255.0 * value),
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
    }
    return operations[name]()


def assert_equal_to_reference(
    images: Tensor,
    magnitudes: range | tuple[int, ...],
    executor: str = "torch",
    interpolation: str = "nearest",
    names: tuple[str, ...] = tuple(TORCHVISION_NAMES),
) -> None:
    """Every operation at these magnitudes in both directions, all in one plan, against torchvision."""
    height, width = images.shape[2:]
    arguments = magnitude_arguments(height, width)
    cases = [(name, m, negative) for name in names for m in magnitudes for negative in (False, True)]
    pictures = [F.to_pil_image(image) for image in images]
    expected, operations, chosen = [], [], []
    for name, magnitude, negative in cases:
        value = reference_arguments(name, magnitude, negative, height, width)
        expected += [
            F.pil_to_tensor(reference_operation(picture, name, value, interpolation=interpolation))
            for picture in pictures
        ]
        operations += [TORCHVISION_NAMES[name]] * len(images)
        chosen += [arguments[TORCHVISION_NAMES[name], magnitude, int(negative)]] * len(images)
    plan = Plan(np.array(operations)[:, None], np.array(chosen)[:, None])
    many = images.repeat(len(cases), 1, 1, 1)
    result = apply_plan(many, plan, interpolation=interpolation, executor=executor)
    differing = (result != torch.stack(expected)).flatten(1).sum(1).view(len(cases), len(images)).sum(1)
    assert {case: int(n) for case, n in zip(cases, differing, strict=True) if n} == {}


def random_batch(count: int = 64, size: int = 16, channels: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 10, torch.arange(count) + 1000)


# ---------------------------------------------------------------- bytes, against torchvision on Pillow images


@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (33, 47)])
def test_operations_equal_torchvision_on_pillow(size: tuple[int, int], channels: int, executor: str) -> None:
    assert_equal_to_reference(varied_images(channels, *size), (0, 1, 14, 23, 30), executor)


@pytest.mark.slow
@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (33, 47), (96, 96)])
def test_every_magnitude_equals_torchvision_on_pillow(
    size: tuple[int, int], channels: int, executor: str
) -> None:
    assert_equal_to_reference(varied_images(channels, *size), range(31), executor)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("executor", WORKING)
def test_large_images_equal_torchvision_on_pillow(executor: str, interpolation: str) -> None:
    assert_equal_to_reference(varied_images(3, 224, 224), (0, 14, 30), executor, interpolation)


@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2), (3, 3)])
def test_tiny_images_equal_torchvision_on_pillow(
    size: tuple[int, int], interpolation: str, executor: str
) -> None:
    assert_equal_to_reference(varied_images(3, *size), (3, 30), executor, interpolation)


@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_bilinear_equals_torchvision_on_pillow(size: tuple[int, int], channels: int, executor: str) -> None:
    images = varied_images(channels, *size)
    moving = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    assert_equal_to_reference(images, range(31), executor, "bilinear", moving)


@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("channels", "fill"), [(3, (12, 250, 77)), (3, 128), (1, 99)])
def test_fill_equals_torchvision_on_pillow(
    channels: int, fill: int | tuple[int, ...], interpolation: str, executor: str
) -> None:
    images = varied_images(channels, 20, 24)
    arguments = magnitude_arguments(20, 24)
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        for negative in (False, True):
            value = reference_arguments(name, 25, negative, 20, 24)
            pictures = [
                reference_operation(F.to_pil_image(image), name, value, fill, interpolation)
                for image in images
            ]
            plan = Plan(
                np.full((len(images), 1), TORCHVISION_NAMES[name]),
                np.full((len(images), 1), arguments[TORCHVISION_NAMES[name], 25, int(negative)]),
            )
            expected = torch.stack([F.pil_to_tensor(picture) for picture in pictures])
            how = {"fill": fill, "interpolation": interpolation, "executor": executor}
            assert torch.equal(apply_plan(images, plan, **how), expected), name


@pytest.mark.parametrize("executor", WORKING)
@pytest.mark.parametrize("magnitudes", ["one", "each its own"])
def test_chains_of_operations_equal_torchvision_on_pillow(magnitudes: str, executor: str) -> None:
    # One level of difference grows to a hundred when Equalize follows: single operations do not prove pairs.
    images = varied_images(3, 32, 32).repeat(50, 1, 1, 1)
    index = np.arange(len(images))
    levels = np.random.default_rng(0).integers(0, 31, len(images))
    magnitude = 14 if magnitudes == "one" else levels
    plan = draw_plan(index, magnitude, height=32, width=32, operations=3)
    result = apply_plan(images, plan, executor=executor)
    names = {operation: name for name, operation in TORCHVISION_NAMES.items()}
    arguments = magnitude_arguments(32, 32)
    for row, image in enumerate(images):
        picture = F.to_pil_image(image)
        level = 14 if magnitudes == "one" else int(levels[row])
        for step in range(3):
            operation = Operation(plan.operations[row, step])
            negative = plan.arguments[row, step] == arguments[operation, level, 1]
            value = reference_arguments(names[operation], level, bool(negative), 32, 32)
            picture = reference_operation(picture, names[operation], value)
        assert torch.equal(result[row], F.pil_to_tensor(picture)), [
            Operation(o).name for o in plan.operations[row]
        ]


@pytest.mark.parametrize("width", [28, 32, 96, 224])
def test_arguments_are_those_of_torchvision(width: int) -> None:
    table = magnitude_arguments(40, width)
    pixels = table[Operation.TRANSLATE_X, :, 0]
    assert pixels.tolist() == [int(m / 30 * (150 / 331) * width) for m in range(31)]
    assert table[Operation.TRANSLATE_Y, 30].tolist() == [18, -18]
    assert table[Operation.POSTERIZE, :, 0].tolist() == [8] * 4 + [7] * 8 + [6] * 7 + [5] * 8 + [4] * 4
    assert table[Operation.SOLARIZE, [0, 30], 0].tolist() == [255, 0]
    assert table[Operation.COLOR, 30] == pytest.approx([1.9, 0.1])
    assert np.isnan(table[[Operation.IDENTITY, Operation.AUTO_CONTRAST, Operation.EQUALIZE]]).all()


@pytest.mark.parametrize("executor", WORKING)
def test_arguments_outside_randaugment_serve_other_policies(executor: str) -> None:
    images = varied_images(3, 12, 12)
    everything = len(images)

    def apply(operation: Operation, argument: float) -> Tensor:
        plan = Plan(np.full((everything, 1), operation), np.full((everything, 1), argument))
        return apply_plan(images, plan, executor=executor)

    assert torch.equal(apply(Operation.SOLARIZE, 0), 255 - images)
    assert torch.equal(apply(Operation.SOLARIZE, 256), images)
    assert torch.equal(apply(Operation.SOLARIZE, 255.5), images)
    assert not apply(Operation.POSTERIZE, 0).any()
    assert not apply(Operation.BRIGHTNESS, 0).any()
    assert not apply(Operation.TRANSLATE_X, 12).any()
    assert not apply(Operation.TRANSLATE_Y, -500).any()
    turned = torch.stack([F.pil_to_tensor(F.to_pil_image(image).rotate(90.5)) for image in images])
    assert torch.equal(apply(Operation.ROTATE, 90.5), turned)


def any_plan(rows: int, steps: int, height: int, width: int, seed: int = 0) -> Plan:
    """Every operation at arguments of RandAugment, of PBA and far outside both, in random order."""
    random = np.random.default_rng(seed)
    ranges = {
        Operation.POSTERIZE: (0, 9),
        Operation.SOLARIZE: (0, 257),
        Operation.TRANSLATE_X: (-2 * width, 2 * width),
        Operation.TRANSLATE_Y: (-2 * height, 2 * height),
    }
    reals = dict.fromkeys((5, 6, 7, 8), (0.0, 2.0))
    reals |= {Operation.SHEAR_X: (-0.9, 0.9), Operation.SHEAR_Y: (-0.9, 0.9), Operation.ROTATE: (-200, 200)}
    operations = random.integers(0, len(Operation), (rows, steps))
    arguments = np.full((rows, steps), np.nan)
    for operation in Operation:
        if operation in ranges:
            values = random.integers(*ranges[operation], (rows, steps)).astype(np.float64)
        elif operation in reals:
            values = random.uniform(*reals[operation], (rows, steps))
        else:
            values = 2.0 * random.integers(0, 9, (rows, steps))
        arguments = np.where(operations == operation, values, arguments)
    places = random.integers(-2, (height + 2, width + 2), (rows, steps, 2))
    return Plan(operations, arguments, places)


@pytest.mark.parametrize("executor", [name for name in WORKING if name != "pillow"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_executors_equal_pillow_on_any_plan(channels: int, interpolation: str, executor: str) -> None:
    for seed, size in enumerate([(16, 16), (9, 21), (1, 4)]):
        images = varied_images(channels, *size).repeat(40, 1, 1, 1)
        plan = any_plan(len(images), 4, *size, seed)
        fill = (5, 120, 250)[:channels]
        expected = apply_plan(images, plan, fill=fill, interpolation=interpolation, executor="pillow")
        result = apply_plan(images, plan, fill=fill, interpolation=interpolation, executor=executor)
        wrong = (result != expected).flatten(1).any(1).nonzero().flatten().tolist()
        assert [[Operation(o).name for o in plan.operations[n]] for n in wrong] == []


def test_executors_are_named_and_checked() -> None:
    images = random_batch(3).images
    for wrong, sentence in ({"executor": "numba"}, "no executor"), ({"interpolation": "cubic"}, "bilinear"):
        with pytest.raises(RecipeError, match=sentence):
            apply_plan(images, draw_plan(np.arange(3), 9, height=16, width=16), **wrong)
        with pytest.raises(RecipeError, match=sentence):
            RandAugment(**wrong)


def test_images_too_long_for_the_kernels_are_done_by_torch() -> None:
    images = torch.arange(2 * 3 * 40_000, dtype=torch.int64).to(torch.uint8).view(2, 3, 1, 40_000)
    plan = any_plan(2, 3, 1, 40_000)
    expected = apply_plan(images, plan, executor="torch")
    assert torch.equal(apply_plan(images, plan), expected)


# ---------------------------------------------------------------- layouts, sizes, pieces


def test_layout_of_the_input_does_not_matter_and_is_not_written_to() -> None:
    images = random_batch(40, 17).images
    before = images.clone()
    expected = augment_images(images, 20)
    assert torch.equal(augment_images(images.to(memory_format=torch.channels_last), 20), expected)
    wide = torch.zeros(40, 3, 17, 34, dtype=torch.uint8)
    wide[..., ::2] = images
    assert torch.equal(augment_images(wide[..., ::2], 20), expected)
    # 867 bytes an image: a view that starts at an odd byte.
    shifted = torch.cat([images[:1], images])[1:]
    assert torch.equal(augment_images(shifted, 20), expected)
    assert expected.is_contiguous()
    assert torch.equal(images, before)


def test_empty_and_single_batches() -> None:
    for channels in (1, 3):
        empty = torch.zeros(0, channels, 8, 8, dtype=torch.uint8)
        batch = Batch(empty, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        for magnitude in (None, 14):
            assert RandAugment()(batch, magnitude, 0, 0).images.shape == (0, channels, 8, 8)
    batch = random_batch(60)
    whole = RandAugment()(batch, 14, 0, 0).images
    for place in range(0, 60, 7):
        one = Batch(batch.images[place, None], batch.targets[place, None], batch.index[place, None])
        assert torch.equal(RandAugment()(one, 14, 0, 0).images[0], whole[place])


def test_pieces_of_a_large_batch_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_batch(50).images
    whole = augment_images(images, 17)
    monkeypatch.setattr(grouped, "_PIECE_BYTES", 7 * images[0].numel())
    assert torch.equal(augment_images(images, 17), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("channels", [1, 3])
def test_gpu_equals_cpu(channels: int) -> None:
    batch = random_batch(512, 32, channels)
    batch = Batch(
        torch.cat([batch.images, varied_images(channels, 32, 32)]), torch.arange(520), torch.arange(520)
    )
    for magnitude in (None, 1, 14, 30):
        expected = RandAugment(operations=3, fill=9)(batch, magnitude, 1, 2).images
        result = RandAugment(operations=3, fill=9)(batch.to(torch.device("cuda")), magnitude, 1, 2).images
        assert torch.equal(result.cpu(), expected)


# ---------------------------------------------------------------- crop and flip


def crops(
    index: NDArray[np.int64], padding: int, epoch: int = 0, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Offsets down and right in the padded image, and whether it is flipped; (N,) each."""
    plan = draw_crop_flip(index, padding=padding, epoch=epoch, seed=seed)
    assert (plan.operations[:, 0] == Operation.CROP).all()
    down, right = (plan.all_places()[:, 0] + padding).T
    return down, right, plan.operations[:, 1] == Operation.FLIP


def test_crop_and_flip_equal_padding_and_slicing() -> None:
    images = random_batch(200, 11).images
    index = np.arange(200) * 3
    result = crop_and_flip(images, index, padding=3, epoch=2, seed=8)
    down, right, flipped = crops(index, padding=3, epoch=2, seed=8)
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    for n in range(200):
        window = padded[n, :, down[n] : down[n] + 11, right[n] : right[n] + 11]
        assert torch.equal(result[n], window.flip(2) if flipped[n] else window)


def test_crop_wider_than_the_image_and_no_crop() -> None:
    images = random_batch(30, 5).images + 1
    assert torch.equal(crop_and_flip(images, np.arange(30), padding=0, flip=False), images)
    far = crop_and_flip(images, np.arange(30), padding=9, flip=False)
    down, right, _ = crops(np.arange(30), padding=9)
    gone = torch.from_numpy((np.abs(down - 9) >= 5) | (np.abs(right - 9) >= 5))
    assert gone.any()
    assert not far[gone].any()


def test_crop_offsets_and_flips_are_uniform() -> None:
    down, right, flipped = crops(np.arange(90_000), padding=4)
    for offsets in (down, right):
        share = np.bincount(offsets, minlength=9) / len(offsets)
        assert len(share) == 9
        assert share == pytest.approx(1 / 9, abs=0.005)
    assert flipped.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef([down, right, flipped])[np.triu_indices(3, 1)]).max() < 0.015


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: str) -> None:
    words = philox(np.array(counter, dtype=np.uint64), key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_words_depend_on_every_part_of_the_key_and_on_nothing_else() -> None:
    index = np.array([0, 1, 2**32, 5])

    def words(**changed: int) -> NDArray[np.uint64]:
        keys = {"epoch": 0, "seed": 0, "stream": Stream.OPERATIONS, "candidate": 0, "block": 0}
        return draw_words(index, **(keys | changed))

    variants = [
        words(),
        words(epoch=1),
        words(seed=1),
        words(seed=2**32),
        words(stream=Stream.CROP_FLIP),
        words(candidate=1),
        words(block=1),
    ]
    flat = np.stack(variants).transpose(0, 2, 1).reshape(-1, 4)
    assert len(np.unique(flat, axis=0)) == len(variants) * len(index)
    assert np.array_equal(
        words()[:, ::-1], draw_words(index[::-1], epoch=0, seed=0, stream=Stream.OPERATIONS)
    )


def test_operations_and_directions_are_uniform() -> None:
    plan = draw_plan(np.arange(140_000), 14, height=32, width=32)
    share = np.bincount(plan.operations.reshape(-1), minlength=14) / plan.operations.size
    assert share == pytest.approx(1 / 14, abs=0.0025)
    pairs = np.bincount(plan.operations[:, 0] * 14 + plan.operations[:, 1], minlength=196) / len(plan)
    assert pairs == pytest.approx(1 / 196, abs=0.001)  # with replacement, the two independent
    for operation in (Operation.ROTATE, Operation.SHEAR_X, Operation.COLOR):
        arguments = plan.arguments[plan.operations == operation]
        positive = magnitude_arguments(32, 32)[operation, 14, 0]
        assert (arguments == positive).mean() == pytest.approx(0.5, abs=0.015)


def test_draws_are_pinned() -> None:
    # Changing these numbers changes what every stored seed means.
    plan = draw_plan(np.arange(5), 30, height=32, width=32, epoch=3, seed=11)
    assert plan.operations.tolist() == [
        [Operation.COLOR, Operation.IDENTITY],
        [Operation.SOLARIZE, Operation.IDENTITY],
        [Operation.CONTRAST, Operation.CONTRAST],
        [Operation.TRANSLATE_X, Operation.BRIGHTNESS],
        [Operation.SHEAR_X, Operation.BRIGHTNESS],
    ]
    down, right, flipped = crops(np.arange(5), padding=4, epoch=3, seed=11)
    assert [down.tolist(), right.tolist(), flipped.astype(int).tolist()] == [
        [4, 2, 7, 5, 2],
        [7, 6, 2, 2, 0],
        [1, 1, 1, 1, 0],
    ]


def test_plan_is_the_same_at_any_magnitude_and_number_of_operations() -> None:
    index = np.arange(100)
    two = draw_plan(index, 14, height=32, width=32)
    assert np.array_equal(two.operations, draw_plan(index, 3, height=32, width=32).operations)
    nine = draw_plan(index, 14, height=32, width=32, operations=9)
    assert np.array_equal(nine.operations[:, :2], two.operations)
    assert len(np.unique(nine.operations)) == 14
    none = draw_plan(index, 14, height=32, width=32, operations=0)
    assert none.operations.shape == (100, 0)
    levels = np.full(100, 14)
    assert np.array_equal(
        draw_plan(index, levels, height=32, width=32).arguments, two.arguments, equal_nan=True
    )
    other = draw_plan(index, 14, height=32, width=32, candidate=1)
    assert not np.array_equal(other.operations, two.operations)


def test_candidates_may_differ_from_row_to_row() -> None:
    index = np.array([4, 4, 4, 9, 9, 9])
    both = draw_plan(index, 14, height=32, width=32, candidate=np.array([0, 1, 2, 0, 1, 2]), seed=5)
    for n, (place, candidate) in enumerate([(4, 0), (4, 1), (4, 2), (9, 0), (9, 1), (9, 2)]):
        one = draw_plan(np.array([place]), 14, height=32, width=32, candidate=candidate, seed=5)
        assert np.array_equal(one.operations[0], both.operations[n])
    with pytest.raises(RecipeError, match="candidate of the augmentation"):
        draw_plan(index, 14, height=32, width=32, candidate=np.array([0, 1, 2, 0, 1, 2**16]))


def test_random_magnitudes_are_uniform_and_belong_to_the_image() -> None:
    index = np.arange(62_000)
    levels = draw_magnitudes(index, 30)
    assert np.bincount(levels) == pytest.approx(np.full(31, 2000), abs=200)
    assert np.array_equal(draw_magnitudes(index[100:200], 30), levels[100:200])
    assert not np.array_equal(draw_magnitudes(index, 30, candidate=1), levels)
    assert draw_magnitudes(index, 0).max() == 0
    batch = random_batch()
    place = batch.index.numpy()
    drawn = draw_plan(
        place, draw_magnitudes(place, 20, epoch=3, seed=8), height=16, width=16, epoch=3, seed=8
    )
    augment = RandAugment(random_magnitude=True, crop_padding=0, flip=False)
    assert torch.equal(augment(batch, 20, 3, 8).images, apply_plan(batch.images, drawn))
    with pytest.raises(RecipeError, match="magnitude must be"):
        augment(batch, 31, 3, 8)


def test_cutout_paints_a_square_round_a_uniform_centre() -> None:
    index = np.arange(20_000)
    plan = draw_cutout(index, 6, height=5, width=9)
    rows, columns = plan.all_places()[:, 0].T
    assert np.bincount(rows) / len(index) == pytest.approx(1 / 5, abs=0.01)
    assert np.bincount(columns) / len(index) == pytest.approx(1 / 9, abs=0.01)
    images = random_batch(200, 16).images
    plan = draw_cutout(np.arange(200), 6, height=16, width=16)
    painted = apply_plan(images, plan, fill=(7, 8, 9))
    for n, (row, column) in enumerate(plan.all_places()[:, 0]):
        expected = images[n].clone()
        square = expected[:, max(row - 3, 0) : row + 3, max(column - 3, 0) : column + 3]
        square.copy_(torch.tensor([7, 8, 9], dtype=torch.uint8).view(3, 1, 1).expand_as(square))
        assert torch.equal(painted[n], expected)
    with pytest.raises(RecipeError, match="even number of pixels, but it is 5"):
        RandAugment(cutout=5)


def test_result_does_not_depend_on_the_batch() -> None:
    batch = random_batch(96)
    expected = RandAugment()(batch, 14, 5, 3).images
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    shuffled = Batch(batch.images[order], batch.targets[order], batch.index[order])
    assert torch.equal(RandAugment()(shuffled, 14, 5, 3).images, expected[order])
    parts = [
        RandAugment()(Batch(batch.images[s], batch.targets[s], batch.index[s]), 14, 5, 3).images
        for s in (slice(0, 1), slice(1, 40), slice(40, 96))
    ]
    assert torch.equal(torch.cat(parts), expected)
    assert torch.equal(RandAugment()(batch, 14, 5, 3).images, expected)
    for epoch, seed in ((6, 3), (5, 4)):
        assert not torch.equal(RandAugment()(batch, 14, epoch, seed).images, expected)


# ---------------------------------------------------------------- the callable, and its errors


def test_none_bypasses_the_operations_and_keeps_crop_and_flip() -> None:
    batch = random_batch()
    index = batch.index.numpy()
    plain = RandAugment()(batch, None, 4, 9)
    assert torch.equal(plain.images, crop_and_flip(batch.images, index, epoch=4, seed=9))
    assert plain.targets is batch.targets
    assert plain.index is batch.index
    # Magnitude 0 is not none: Equalize and AutoContrast have no magnitude.
    assert not torch.equal(RandAugment()(batch, 0, 4, 9).images, plain.images)
    still = RandAugment(crop_padding=0, flip=False)
    assert torch.equal(still(batch, None, 4, 9).images, batch.images)


def test_order_is_operations_then_crop_flip_and_cutout() -> None:
    batch = random_batch()
    index = batch.index.numpy()
    plan = draw_plan(index, 14, height=16, width=16, operations=1, epoch=1, seed=2)
    fill = (1, 2, 3)
    moved = crop_and_flip(
        apply_plan(batch.images, plan, fill=fill), index, padding=2, fill=fill, epoch=1, seed=2
    )
    expected = apply_plan(moved, draw_cutout(index, 6, height=16, width=16, epoch=1, seed=2), fill=fill)
    transform = RandAugment(operations=1, crop_padding=2, cutout=6, fill=fill)
    assert torch.equal(transform(batch, 14, 1, 2).images, expected)
    plain = RandAugment(crop_padding=0, flip=False)(batch, 14, 1, 2).images
    assert torch.equal(augment_images(batch.images, 14, index=batch.index, epoch=1, seed=2), plain)


@pytest.mark.parametrize("magnitude", [31, -1, 14.0, True, "14", float("nan")])
def test_wrong_magnitude_is_refused(magnitude: object) -> None:
    with pytest.raises(RecipeError, match=r"magnitude must be a whole number in 0\.\.30"):
        check_magnitude(magnitude)
    with pytest.raises(RecipeError, match="magnitude"):
        RandAugment()(random_batch(2), magnitude, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="magnitude"):
        augment_images(random_batch(2).images, magnitude)  # type: ignore[arg-type]


def test_right_magnitudes_are_accepted() -> None:
    assert [check_magnitude(m) for m in (0, 30, np.int64(7))] == [0, 30, 7]


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        (np.array([0, 31]), "it is .*31"),
        (np.array([1.0, 2.0]), "float64"),
        (np.array([1, 2, 3]), "each of the 2 images"),
    ],
)
def test_wrong_magnitudes_are_refused(levels: NDArray[np.int64], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        draw_plan(np.arange(2), levels, height=8, width=8)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(2, 3, 8, 8), r"these are float32 \(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"their shape is \(3, 8, 8\)"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "1 or 3 channels"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), "their shape is"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, sentence: str) -> None:
    batch = Batch(images, torch.zeros(2, dtype=torch.int64), torch.arange(len(images)))
    for magnitude in (None, 14):
        with pytest.raises(DataError, match=sentence):
            RandAugment()(batch, magnitude, 0, 0)
    with pytest.raises(DataError, match=r"takes a Batch.* for plain images there is AugmentTransform"):
        RandAugment()(images, 14, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=sentence):
        augment_images(images, 14)


def test_wrong_index_plan_seed_and_settings_are_refused() -> None:
    batch = random_batch(4)
    for index in (torch.arange(3), torch.arange(4.0)):
        with pytest.raises(DataError, match=r"index of the batch must be int64 \(4,\)"):
            RandAugment()(Batch(batch.images, batch.targets, index), 14, 0, 0)
    with pytest.raises(DataError, match="plan is for 2 images, but there are 4"):
        apply_plan(batch.images, draw_plan(np.arange(2), 14, height=16, width=16))
    with pytest.raises(DataError, match=r"int64 \(4,\), one position for each image"):
        crop_and_flip(batch.images, np.arange(3))
    for keys, sentence in (({"epoch": -1, "seed": 0}, "epoch"), ({"epoch": 0, "seed": 2**64}, "seed")):
        with pytest.raises(RecipeError, match=sentence):
            RandAugment()(batch, 14, **keys)
    wrong = [{"operations": -1}, {"operations": 1021}, {"crop_padding": 1.5}, {"flip": "no"}]
    wrong += [{"fill": value} for value in (256, (0, 0), 0.5, None, True, "mean")]
    wrong += [{"random_magnitude": 1}]
    for settings in wrong:
        with pytest.raises(RecipeError, match=f"{next(iter(settings))} must be"):
            RandAugment(**settings)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"whole number in 0\.\.255 for images of one channel, but"):
        RandAugment(fill=(1, 2, 3))(random_batch(2, channels=1), 14, 0, 0)


def test_public_names_are_sorted_and_there() -> None:
    assert augment.__all__ == sorted(augment.__all__)
    assert all(hasattr(augment, name) for name in augment.__all__)


def test_below_covers_its_range() -> None:
    words = np.array([0, 2**32 - 1], dtype=np.uint64)
    assert [below(words, limit).tolist() for limit in (1, 2, 14)] == [[0, 0], [0, 1], [0, 13]]
