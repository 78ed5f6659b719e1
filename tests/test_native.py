"""The compiled kernels: every byte against Pillow at every level, nothing written outside, and life without them."""

import ctypes
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from test_augment import any_plan, varied_images
from torch import Tensor

from compress_aug import native
from compress_aug.augment import Operation, Plan, apply_plan, compiled, magnitude_arguments
from compress_aug.augment.compiled import apply_compiled
from compress_aug.errors import DataError, MissingPart, RecipeError

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")

needs_kernels = pytest.mark.skipif(
    native.kernels() is None,
    reason="the kernels were not built here: no C compiler at installation, or COMPRESS_AUG_NATIVE=0",
)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each level that this processor can run takes the place of the best one."""
    best = native.kernels()
    if best is None or LEVELS.index(request.param) > LEVELS.index(best.level):
        pytest.skip(f"{request.param} cannot run here")
    chosen = native._load(native.LIBRARY, request.param)
    assert chosen.level == request.param
    monkeypatch.setattr(compiled, "kernels", lambda: chosen)
    return chosen.level


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


def fill_of(channels: int) -> tuple[int, ...]:
    return (5, 120, 250)[:channels]


def differing(result: Tensor, expected: Tensor, plan: Plan) -> list[list[str]]:
    """The operations of the first images that are wrong."""
    wrong = (result != expected).flatten(1).any(1).nonzero().flatten().tolist()
    return [[Operation(o).name for o in plan.operations[n]] for n in wrong[:5]]


@cache
def chains(
    size: tuple[int, int], channels: int, interpolation: str, repeats: int
) -> tuple[Tensor, Plan, Tensor]:
    """Images, a plan of five steps with arguments of all kinds, and what Pillow makes of them."""
    images = varied_images(channels, *size).repeat(repeats, 1, 1, 1)
    plan = any_plan(len(images), 5, *size, seed=size[1])
    fill = fill_of(channels)
    return images, plan, apply_plan(images, plan, fill=fill, interpolation=interpolation, executor="pillow")


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2), (28, 28), (32, 32), (33, 47)])
def test_chains_equal_pillow(size: tuple[int, int], channels: int, interpolation: str, level: str) -> None:
    images, plan, expected = chains(size, channels, interpolation, 6)
    result = apply_compiled(images, plan, fill_of(channels), interpolation == "bilinear")
    assert differing(result, expected, plan) == []


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 70), (70, 1), (5, 8), (17, 16), (64, 65), (3, 1100), (224, 224)])
def test_more_chains_equal_pillow(
    size: tuple[int, int], channels: int, interpolation: str, level: str
) -> None:
    images, plan, expected = chains(size, channels, interpolation, 40 if max(size) < 200 else 8)
    result = apply_compiled(images, plan, fill_of(channels), interpolation == "bilinear")
    assert differing(result, expected, plan) == []


def assert_randaugment_equal(
    size: tuple[int, int], channels: int, interpolation: str, magnitudes: tuple[int, ...] | range
) -> None:
    """Every operation at these magnitudes in both directions, against plain torch."""
    arguments = magnitude_arguments(*size)
    cases = [(o, m, sign) for o in range(Operation.CUTOUT) for m in magnitudes for sign in (0, 1)]
    images = varied_images(channels, *size).repeat(len(cases), 1, 1, 1)
    rows = np.repeat([[case] for case in cases], 8, axis=0)[:, 0]
    plan = Plan(rows[:, :1], arguments[tuple(rows.T)][:, None])
    fill = fill_of(channels)
    expected = apply_plan(images, plan, fill=fill, interpolation=interpolation, executor="torch")
    result = apply_compiled(images, plan, fill, interpolation == "bilinear")
    assert differing(result, expected, plan) == []


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_equal_torch(channels: int, interpolation: str, level: str) -> None:
    for size in ((3, 3), (33, 47)):
        assert_randaugment_equal(size, channels, interpolation, (0, 1, 14, 30))


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 47), (96, 96)])
def test_operations_at_every_magnitude_equal_torch(
    size: tuple[int, int], channels: int, interpolation: str, level: str
) -> None:
    assert_randaugment_equal(size, channels, interpolation, range(31))


# What RandAugment never draws: (operation, argument), with the place (2, 7).
UNUSUAL = [
    *((Operation.POSTERIZE, float(bits)) for bits in range(9)),
    *((Operation.SOLARIZE, value) for value in (0.0, 0.5, 1.0, 127.2, 254.5, 255.0, 256.0)),
    *((operation, value) for operation in (5, 6, 7, 8) for value in (-3.0, 0.0, 99.9, 100.0, 1e4)),
    *((operation, value) for operation in (9, 10) for value in (-1e6, -12.0, 11.0, 12.0, 1e6)),
    *((operation, value) for operation in (11, 12) for value in (-40.0, -1.0, 0.001, 1.5, 3e4)),
    *((Operation.ROTATE, value) for value in (90.0, 90.5, 180.0, 270.0, 359.999, -1e-9, 12345.6)),
    *((Operation.CUTOUT, value) for value in (0.0, 2.0, 6.0, 40.0, 2000.0)),
    (Operation.CROP, float("nan")),
    (Operation.FLIP, float("nan")),
]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_unusual_arguments_equal_torch(channels: int, interpolation: str, level: str) -> None:
    images = varied_images(channels, 12, 17).repeat(len(UNUSUAL), 1, 1, 1)
    operations, arguments = (np.repeat(column, 8)[:, None] for column in zip(*UNUSUAL, strict=True))
    plan = Plan(operations.astype(np.int64), arguments, np.tile([[[2, 7]]], (len(images), 1, 1)))
    fill = fill_of(channels)
    expected = apply_plan(images, plan, fill=fill, interpolation=interpolation, executor="torch")
    result = apply_compiled(images, plan, fill, interpolation == "bilinear")
    assert differing(result, expected, plan) == []


@pytest.mark.parametrize("bilinear", [False, True])
def test_no_argument_writes_outside_or_depends_on_what_is_there(bilinear: bool, level: str) -> None:
    extremes = [np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**62, -(2.0**31), 32768.0, 1e-300]
    cases = [(operation, value) for operation in range(len(Operation)) for value in extremes]
    places = np.random.default_rng(0).choice([2**63 - 1, -(2**63), 2**31, 0, 3], (len(cases), 1, 2))
    plan = Plan(np.array([[o] for o, _ in cases]), np.array([[v] for _, v in cases]), places)
    count, height, width = len(cases), 5, 19
    results = []
    for around in (0, 255):
        held = [torch.full((count + 2, 3, height, width), around, dtype=torch.uint8) for _ in range(2)]
        held[0][1:-1] = varied_images(3, height, width)[0]
        call_directly(plan, held[0][1:-1], held[1][1:-1], bilinear)
        assert (held[1][[0, -1]] == around).all()
        results.append(held[1][1:-1])
    assert differing(*results, plan) == []


def call_directly(plan: Plan, images: Tensor, result: Tensor, bilinear: bool) -> None:
    maps, rows = compiled._rotations(plan.operations, np.where(plan.arguments == np.inf, 1, 2), 5, 19)
    maps[:] = plan.arguments[: len(maps)]
    kernels = compiled.kernels()
    assert kernels is not None
    code = kernels.augment(
        images.data_ptr(),
        result.data_ptr(),
        *images.shape,
        *(array.ctypes.data for array in (plan.operations, plan.arguments, plan.all_places())),
        *(plan.steps, maps.ctypes.data, rows.ctypes.data),
        *((ctypes.c_uint8 * 3)(7, 8, 9), bilinear),
    )
    assert code == 0


@needs_kernels
def test_threads_do_not_change_the_result(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, plan, expected = chains((32, 32), 3, "nearest", 6)
    whole = apply_compiled(images, plan, fill_of(3))
    monkeypatch.setattr(compiled, "_PIECE_BYTES", 4 * 32 * 32)
    for number in (2, 3, 1):
        threads(number)
        assert len(compiled._bounds(len(images), 3 * 32 * 32)) == {1: 2, 2: 9, 3: 13}[number]
        assert torch.equal(apply_compiled(images, plan, fill_of(3)), whole)
    assert torch.equal(whole, expected)


# numpy compares in the child, because torch's own threads do not survive a fork.
@pytest.mark.slow
@needs_kernels
def test_a_forked_worker_has_threads_of_its_own() -> None:
    code = (
        "import os, signal, torch; from compress_aug.augment import augment_images, compiled\n"
        "torch.set_num_threads(2); images = torch.arange(2**20).to(torch.uint8).view(-1, 1, 32, 32)\n"
        "before = augment_images(images, 14); assert compiled._pool.cache_info().currsize == 1\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(30)\n"
        "    os._exit(0 if (augment_images(images, 14).numpy() == before.numpy()).all() else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "0", done.stderr


@needs_kernels
def test_wrong_operations_and_sizes_are_refused() -> None:
    images = varied_images(3, 6, 6)
    for wrong in (-1, 17, 2**40):
        plan = Plan(np.full((8, 2), wrong), np.zeros((8, 2)))
        with pytest.raises(RecipeError, match=rf"operations 0\.\.16 .* {wrong} in this one"):
            apply_compiled(images, plan, (0, 0, 0))
    with pytest.raises(DataError, match="32767 pixels a side, but these have 1 x 40000"):
        apply_compiled(torch.zeros(1, 1, 1, 40000, dtype=torch.uint8), Plan(*np.zeros((2, 1, 1))), (0,))


@needs_kernels
def test_empty_batches_and_plans() -> None:
    images = varied_images(3, 6, 6)
    nothing = Plan(np.zeros((8, 0), dtype=np.int64), np.zeros((8, 0)))
    result = apply_compiled(images, nothing, (0, 0, 0))
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()
    assert apply_compiled(images[:0], nothing[:0], (0, 0, 0)).shape == (0, 3, 6, 6)


# ---------------------------------------------------------------- the library, and life without it


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What was found out about the library is forgotten, before the test and after it."""
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def assert_one_line(caplog: pytest.LogCaptureFixture, kind: int, *words: str) -> None:
    with caplog.at_level(logging.INFO, logger="compress_aug"):
        assert native.kernels() is None
        assert native.kernels() is None
    (record,) = caplog.records
    line = record.getMessage()
    assert record.levelno == kind
    assert "\n" not in line
    assert all(word in line for word in ("plain torch is used instead", *words)), line


@pytest.mark.usefixtures("forgotten")
def test_without_a_library_one_line_says_what_is_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "kernels.so")
    assert_one_line(caplog, logging.WARNING, "is not there", "C compiler", "COMPRESS_AUG_NATIVE=0")
    images, plan, expected = chains((9, 2), 3, "nearest", 6)
    assert torch.equal(apply_plan(images, plan, fill=fill_of(3)), expected)
    with pytest.raises(MissingPart, match="install compress_aug again with a C compiler"):
        apply_compiled(images, plan, fill_of(3))


@pytest.mark.usefixtures("forgotten")
def test_a_damaged_library_is_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(native.SWITCH, raising=False)
    (tmp_path / "kernels.so").write_text("no library")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "kernels.so")
    assert_one_line(caplog, logging.WARNING, "cannot be used", "C compiler")


@needs_kernels
@pytest.mark.usefixtures("forgotten")
def test_a_library_with_another_interface_is_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert_one_line(caplog, logging.WARNING, f"interface {native.ABI - 1}", f"needs {native.ABI}")


@pytest.mark.usefixtures("forgotten")
def test_the_switch_turns_the_kernels_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert_one_line(caplog, logging.INFO, "COMPRESS_AUG_NATIVE is 0")


def test_the_number_of_the_interface_stands_in_both_files() -> None:
    source = Path(native.__file__).with_name("levels.c").read_text()
    assert f"native_abi(void) {{ return {native.ABI}; }}" in source


def test_the_operations_have_the_same_numbers_in_both_languages() -> None:
    source = Path(native.__file__).with_name("augment.c").read_text()
    names = source.partition("enum {")[2].partition("}")[0].replace(",", " ").split()
    assert names == [*(operation.name for operation in Operation), "OPERATIONS"]
