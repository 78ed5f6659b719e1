"""Data against torch, torchvision and scikit-learn; then orders and shares; then what mistakes are told."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from toys import tiny_data, tiny_images

from compress_aug.data import Data, MemorySource, StreamedSource, data_from, data_names, load_data
from compress_aug.data.dataset import held_out, measure_colours, stratified_split
from compress_aug.data.named import NAMED
from compress_aug.errors import DataError


class Pairs(torch.utils.data.Dataset):
    """A user's data set: uint8 tensors, or whatever `change` makes of them."""

    def __init__(self, number: int, change: Any = lambda image, item: image) -> None:
        self.images, self.targets = tiny_images(number)
        self.change = change

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        return self.change(self.images[item], item), int(self.targets[item])


def write_images(
    folder: Path, classes: str, number: int, size: tuple[int, int] = (8, 6), seed: int = 0
) -> Path:
    """A folder of PNG noise, one subfolder for each letter of `classes`; size is (width, height)."""
    draw = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for item in range(number):
            pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{item:03}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "pets" / "train", "abc", 10)
    write_images(tmp_path / "pets" / "test", "abc", 4, seed=1)
    return tmp_path / "pets"


def refused(spec: Any, **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(spec, **arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# --- against references


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load_data("digits")
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1294, 144, 359]
    assert sum(len(part) for part in parts) == len(bunch.target)
    ours = torch.cat([part.images for part in parts])
    assert ours.shape == (1797, 3, 32, 32)
    assert torch.equal(ours[:, 0], ours[:, 2])
    blocks = ours[:, 0].reshape(1797, 8, 4, 8, 4)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    ours_sorted = np.sort(np.round(blocks[:, :, 0, :, 0].flatten(1).numpy() / 255 * 16).sum(1))
    assert np.array_equal(ours_sorted, np.sort(bunch.images.sum((1, 2))))
    assert ours.max() == 255
    assert ours.min() == 0


def test_digits_test_part_does_not_depend_on_the_seed_and_the_validation_part_does() -> None:
    first, second = load_data("digits", seed=1), load_data("digits", seed=2)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.index, second.validation.index)
    assert torch.equal(first.validation.index, load_data("digits", seed=1).validation.index)
    counts = first.test.targets.bincount()
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_constants_of_digits_are_those_of_its_training_images() -> None:
    data = load_data({"name": "digits", "validation": 0})
    mean, std = measure_colours(data.train)
    assert mean == pytest.approx(data.mean, abs=0.002)
    assert std == pytest.approx(data.std, abs=0.002)


def test_normalise_is_that_of_torchvision() -> None:
    data = tiny_data()
    images = data.train.images
    expected = torchvision.transforms.functional.normalize(images / 255, data.mean, data.std)
    ours = data.normalise(images)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_a_folder_is_read_as_torchvision_reads_it(folder: Path) -> None:
    reference = torchvision.datasets.ImageFolder(folder / "train")
    data = load_data({"folder": folder})
    assert data.classes == tuple(reference.classes)
    assert data.image_shape == (3, 6, 8)
    assert len(data.train) + len(data.validation) == len(reference)
    for part in (data.train, data.validation):
        for image, target, index in zip(part.images, part.targets, part.index, strict=True):
            theirs, label = reference[int(index)]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(theirs))
            assert target == label


def test_resizing_and_cropping_is_that_of_torchvision(tmp_path: Path) -> None:
    root = write_images(tmp_path / "wide", "ab", 5, size=(31, 20))
    data = load_data({"folder": root, "image_size": 8, "validation": 0})
    chain = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(8), torchvision.transforms.CenterCrop(8), np.array, torch.from_numpy]
    )
    # No test/ here: every class gives a fifth of its images.
    assert len(data.train) == 8
    assert len(data.test) == 2
    theirs = {chain(image).numpy().tobytes() for image, _ in torchvision.datasets.ImageFolder(root)}
    ours = torch.cat([data.train.images, data.test.images]).permute(0, 2, 3, 1).contiguous()
    assert {image.numpy().tobytes() for image in ours} == theirs


def test_colours_are_measured_on_the_training_images(folder: Path) -> None:
    data = load_data({"folder": folder})
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


class FakeCifar:
    """What torchvision's CIFAR10 shows of itself, with few images."""

    classes = tuple("abcdefghij")

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        assert download
        number = 50 if train else 20
        self.data = np.random.default_rng(train).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        self.targets = [item % 10 for item in range(number)]


def test_cifar_comes_from_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    data = load_data({"name": "cifar10", "root": tmp_path, "validation": 0.2})
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 20)
    assert data.image_shape == (3, 32, 32)
    assert data.flip
    assert data.crop_padding == 4
    whole = FakeCifar(tmp_path, True, True)
    first = next(iter(data.train.batches(1)))
    assert np.array_equal(first.images[0].permute(1, 2, 0), whole.data[int(first.index)])
    assert first.targets[0] == whole.targets[int(first.index)]


def test_fashion_mnist_has_one_channel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Fake:
        classes = ("shirt", "shoe")

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            self.data = torch.zeros(20, 28, 28, dtype=torch.uint8)
            self.targets = torch.arange(20) % 2

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fake)
    data = load_data("fashion_mnist", folder=tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert data.normalise(data.train.images).shape == (18, 1, 28, 28)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_without_network_one_sentence_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    sentence = refused({"name": name, "root": "sets"}, folder=tmp_path)
    assert f"{name} is not in {tmp_path / 'sets'}" in sentence
    files = NAMED[name].files
    assert files is not None
    assert files in sentence


@pytest.mark.skipif("COMPRESS_AUG_DATA" not in os.environ, reason="COMPRESS_AUG_DATA names no folder of data")
def test_real_cifar_pictures() -> None:
    root = Path(os.environ["COMPRESS_AUG_DATA"])
    found = next((path.parent for path in [root / "train", *root.glob("*/train")] if path.is_dir()), None)
    if found is None:
        pytest.skip(f"{root} holds no unpacked CIFAR-10")
    data = load_data({"folder": found, "train": 900, "test": 100})
    assert data.image_shape == (3, 32, 32)
    assert len(data.classes) == 10
    assert (len(data.train), len(data.validation), len(data.test)) == (900, 100, 100)
    # The well known colours of CIFAR-10, as far as 900 images tell.
    assert data.mean == pytest.approx(NAMED["cifar10"].mean, abs=0.02)
    assert data.std == pytest.approx(NAMED["cifar10"].std, abs=0.02)


# --- orders and shares


def both_sources(number: int) -> list[MemorySource | StreamedSource]:
    images, targets = tiny_images(number)
    streamed = data_from(Pairs(number), Pairs(number), classes=4, validation=0, in_memory=False, workers=0)
    assert isinstance(streamed.train, StreamedSource)
    rows = streamed.train.index
    return [MemorySource(images[rows], targets[rows], rows), streamed.train]


def test_streamed_batches_are_those_from_memory() -> None:
    memory, streamed = both_sources(21)
    for arguments in ({}, {"order_seed": 3}, {"order_seed": 3, "drop_last": True, "rank": 1, "world": 2}):
        pairs = list(zip(memory.batches(4, **arguments), streamed.batches(4, **arguments), strict=True))
        assert pairs
        for ours, theirs in pairs:
            assert theirs.images.dtype == torch.uint8
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.targets, theirs.targets)
            assert torch.equal(ours.index, theirs.index)


def test_workers_deliver_what_this_process_would() -> None:
    one = data_from(Pairs(12), Pairs(4), classes=4, in_memory=False, workers=0).train
    two = data_from(Pairs(12), Pairs(4), classes=4, in_memory=False, workers=2).train
    for ours, theirs in zip(one.batches(5, order_seed=1), two.batches(5, order_seed=1), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.index, theirs.index)


def test_order_is_that_of_a_torch_generator() -> None:
    source = tiny_data(train=10).train
    expected = torch.randperm(10, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.cat([batch.index for batch in source.batches(3, order_seed=5)]), expected)
    in_order = torch.cat([batch.index for batch in source.batches(3)])
    assert torch.equal(in_order, torch.arange(10))


@pytest.mark.parametrize("source", both_sources(11), ids=["memory", "streamed"])
def test_reading_draws_nothing_from_the_global_generator(source: MemorySource | StreamedSource) -> None:
    before = torch.get_rng_state()
    assert sum(len(batch) for batch in source.batches(4, order_seed=0)) == 11
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("number", [24, 25, 26, 31])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_every_batch(number: int, world: int, drop_last: bool) -> None:
    source = tiny_data(train=number).train
    whole = [batch.index for batch in source.batches(8, order_seed=1, drop_last=drop_last)]
    shares = [
        list(source.batches(8, order_seed=1, drop_last=drop_last, rank=rank, world=world))
        for rank in range(world)
    ]
    steps = source.steps(8, drop_last, world)
    assert len(whole) == steps == (number // 8 if drop_last else -(-number // 8))
    if drop_last:
        assert {len(share) for share in shares} == {steps}
    for step, rows in enumerate(whole):
        ours = torch.cat([share[step].index for share in shares if step < len(share)])
        assert sorted(ours.tolist()) == sorted(rows.tolist())


def test_a_set_smaller_than_a_batch_still_trains() -> None:
    source = tiny_data(train=5).train
    assert source.steps(64, drop_last=True) == 1
    assert [len(batch) for batch in source.batches(64, order_seed=0, drop_last=True)] == [5]
    assert list(tiny_data(validation=0).validation.batches(64, drop_last=True)) == []


def test_too_few_images_for_all_processes_are_refused() -> None:
    source = tiny_data(train=3).train
    with pytest.raises(DataError, match="3 images cannot be shared by 4 processes"):
        list(source.batches(8, drop_last=True, world=4))
    with pytest.raises(DataError, match="A batch of 2 cannot be shared by 4 processes"):
        source.steps(2, world=4)


def test_validation_is_the_end_of_a_permutation_of_the_training_images() -> None:
    data = data_from(Pairs(40), Pairs(8), classes=4, validation=0.25, seed=7)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(7))
    assert torch.equal(data.train.index, order[:30])
    assert torch.equal(data.validation.index, order[30:])
    assert sorted(data.test.index.tolist()) == list(range(8))


def test_limits_read_the_same_images_as_a_limited_copy(folder: Path) -> None:
    limited = load_data({"folder": folder, "train": 9, "test": 5})
    copy = load_data({"folder": folder}).limited(train=9, test=5)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(limited, part).images, getattr(copy, part).images)
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (9, 1, 5)
    assert len(load_data({"folder": folder, "train": 10**6}).train) == 27
    assert held_out(train=27, validation=3, limit=100) == 3


def test_streamed_sets_can_be_limited_and_moved(folder: Path) -> None:
    data = load_data({"folder": folder, "in_memory": False, "workers": 0}).limited(train=9, test=5)
    assert isinstance(data.train, StreamedSource)
    memory = load_data({"folder": folder}).limited(train=9, test=5)
    moved = data.to(torch.device("meta"))
    assert next(iter(moved.train.batches(4))).images.device.type == "meta"
    ours = torch.cat([batch.images for batch in data.test.batches(2)])
    assert torch.equal(ours, memory.test.images)


def test_data_moves_to_a_device_as_a_whole() -> None:
    moved = tiny_data().to(torch.device("meta"))
    batch = next(iter(moved.train.batches(4)))
    assert batch.images.device.type == batch.targets.device.type == "meta"
    assert batch.index.device.type == "cpu", "draws are made on the host"
    assert moved.normalise(batch.images).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_batches_of_the_cpu() -> None:
    data = tiny_data()
    moved = data.to(torch.device("cuda"))
    for ours, theirs in zip(
        data.train.batches(9, order_seed=2), moved.train.batches(9, order_seed=2), strict=True
    ):
        assert torch.equal(ours.images, theirs.images.cpu())
        torch.testing.assert_close(data.normalise(ours.images), moved.normalise(theirs.images).cpu())


def test_stratified_split_takes_the_same_share_of_every_class() -> None:
    targets = torch.tensor([0] * 50 + [1] * 10 + [2])
    train, test = stratified_split(targets, 0.2, seed=0)
    assert targets[test].bincount(minlength=3).tolist() == [10, 2, 0]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(61))


def test_a_validation_folder_is_used_as_it_is(folder: Path) -> None:
    write_images(folder / "val", "abc", 3, seed=2)
    data = load_data({"folder": folder})
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 9, 12)


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    write_images(tmp_path, "ab", 5)
    (tmp_path / "b").rename(tmp_path / "train")
    assert load_data({"folder": tmp_path}).classes == ("a", "train")


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    load_data({"folder": folder}, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (42, 42)
    assert told == sorted(told)


# --- what a recipe may say


def test_options_are_those_of_the_recipe(folder: Path) -> None:
    data = load_data({"folder": folder, "crop_padding": 3, "flip": False, "validation": 0})
    assert (data.crop_padding, data.flip, len(data.validation)) == (3, False, 0)
    assert load_data({"folder": folder}).flip
    assert not load_data("digits").flip
    assert load_data({"folder": "pets"}, folder=folder.parent).name == "pets"


def test_objects_and_pairs_are_taken_as_they_are() -> None:
    data = tiny_data()
    assert load_data(data) is data
    train, test = Pairs(10), Pairs(4)
    train.classes = list("abcd")  # type: ignore[attr-defined]
    assert load_data((train, test)).classes == ("a", "b", "c", "d")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user in the current folder, by a name that no other test uses."""
    name = "nets_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "from compress_aug.data import data_from\n"
        "pairs = [(torch.full((3, 8, 8), 8 * k, dtype=torch.uint8), k % 3) for k in range(30)]\n"
        "def whole(number=30): return data_from(pairs[:number], pairs, classes=3)\n"
        "def broken(): raise OSError('disk on fire')\n"
        "def wrong(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_data_may_come_from_a_function(module: str) -> None:
    assert len(load_data(f"{module}:whole").train) == 27
    data = load_data({"call": f"{module}:whole", "number": 20})
    assert isinstance(data, Data)
    assert len(data.train) == 18


def test_mistakes_of_a_function_are_told(module: str) -> None:
    assert 'did you mean "whole"?' in refused(f"{module}:wole")
    assert 'did you mean "number"?' in refused({"call": f"{module}:whole", "nmber": 3})
    assert "raised OSError: disk on fire" in refused(f"{module}:broken")
    assert "returned a int: expected a compress_aug Data, or a pair" in refused(f"{module}:wrong")
    assert f'did you mean "{module}"?' in refused(f"{module}s:whole")


# --- sentences of mistakes


def test_unknown_names_and_keys(folder: Path) -> None:
    assert refused("cifar") == 'data: there is no data set "cifar"; did you mean "cifar10"?'
    assert "write {folder: pets}" in refused("pets", folder=folder.parent)
    assert refused({"name": "digits", "tran": 5}) == 'data: digits has no key "tran"; did you mean "train"?'
    assert 'has no key "root"' in refused({"name": "digits", "root": "x"})
    assert 'did you mean "image_size"?' in refused({"folder": folder, "image_sice": 8})
    assert "expected one of name, folder, call; found name, folder" in refused(
        {"name": "digits", "folder": "."}
    )
    assert "found nothing" in refused({})
    assert data_names() == list(NAMED)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train", True, "a number of images, 1 or more"),
        ("test", 0, "a number of images, 1 or more"),
        ("validation", 1.0, "a share from 0 to below 1"),
        ("flip", "no", "true or false"),
        ("crop_padding", -1, "a number of pixels, 0 or more"),
    ],
)
def test_wrong_values(key: str, value: Any, expected: str) -> None:
    assert refused({"name": "digits", key: value}) == f"data: {key} is {value!r}: expected {expected}."


def test_a_missing_folder_names_the_nearest(folder: Path) -> None:
    assert refused({"folder": folder.parent / "petz"}).endswith(f'; did you mean "{folder}"?')
    assert refused({"folder": folder / "no" / "such"}) == f'There is no folder "{folder / "no" / "such"}".'
    assert "is a file" in refused({"folder": folder / "train" / "a" / "000.png"})


def test_folders_without_the_right_images(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert '"' + str(tmp_path / "empty") + '" holds no images' in refused({"folder": tmp_path / "empty"})
    assert "images but no folder of a class" in refused({"folder": folder / "train" / "a"})
    write_images(tmp_path / "single", "a", 3)
    assert 'holds one class only ("a")' in refused({"folder": tmp_path / "single"})
    (tmp_path / "single" / "b").mkdir()
    assert "holds no images (.jpg" in refused({"folder": tmp_path / "single"})
    write_images(tmp_path / "few", "ab", 1)
    assert "one image of each class: too few" in refused({"folder": tmp_path / "few"})
    write_images(tmp_path / "half" / "train", "ab", 2)
    assert "has train/ but neither test/ nor val/" in refused({"folder": tmp_path / "half"})


def test_unlike_classes_of_train_and_test(folder: Path) -> None:
    write_images(folder / "test", "d", 2)
    sentence = refused({"folder": folder})
    assert sentence.startswith(f'Class "d" is in "{folder / "test"}" but not in "{folder / "train"}"')


@pytest.mark.parametrize(
    "arguments", [{}, {"in_memory": False, "workers": 0}, {"in_memory": False, "workers": 1}]
)
def test_a_broken_file_is_named(folder: Path, arguments: dict[str, Any]) -> None:
    file = folder / "test" / "b" / "001.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        data = load_data({"folder": folder, **arguments})
        list(data.test.batches(2))
    assert str(caught.value).startswith(f'"{file}" is not an image that can be read (')
    file.write_text("hello")
    with pytest.raises(DataError, match=r"unknown image format"):
        list(load_data({"folder": folder, **arguments}).test.batches(2))


def test_sixteen_bits_are_refused_rather_than_clipped(folder: Path) -> None:
    file = folder / "train" / "a" / "004.png"
    Image.fromarray(np.full((6, 8), 3000, dtype=np.uint16)).save(file)
    assert refused({"folder": folder}) == f'"{file}" has more than 8 bits a channel: convert it to 8 bits.'


def test_unlike_sizes_name_two_files(folder: Path) -> None:
    odd = folder / "train" / "c" / "005.png"
    Image.new("RGB", (9, 6)).save(odd)
    sentence = refused({"folder": folder})
    first = folder / "train" / "a" / "000.png"
    assert f'"{first}" has 8x6 pixels, "{odd}" has 9x6 pixels: give `image_size:`' in sentence
    assert load_data({"folder": folder, "image_size": 5}).image_shape == (3, 5, 5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda image, item: image / 255, "training image 0 is float32: expected uint8"),
        (lambda image, item: image.numpy(), "training image 0 is a ndarray: expected a PIL image"),
        (lambda image, item: image[0], r"training image 0 has shape \(8, 8\)"),
        (lambda image, item: image[:, : 8 - item], "8x8 pixels, training image [1-9]+ has 8x[0-7] pixels"),
    ],
)
def test_items_of_the_wrong_kind(change: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        data_from(Pairs(8, change), Pairs(4), classes=4)


def test_own_data_must_fit_its_classes() -> None:
    with pytest.raises(DataError, match=r"has class number 3: expected 0\.\.2"):
        data_from(Pairs(8), Pairs(4), classes=3)
    with pytest.raises(DataError, match="no attribute `classes`"):
        data_from(Pairs(8), Pairs(4))
    with pytest.raises(DataError, match="The test set is empty"):
        data_from(Pairs(8), [], classes=4)
    with pytest.raises(DataError, match="1 class is too few"):
        data_from(Pairs(8), Pairs(4), classes=1)
    with pytest.raises(DataError, match="expected 3 numbers for 3 channels"):
        data_from(Pairs(8), Pairs(4), classes=4, mean=[0.5], std=[0.5])
    with pytest.raises(DataError, match="not a pair of an image and a class number"):
        data_from([(torch.zeros(3, 8, 8, dtype=torch.uint8), 0, 0)], Pairs(4), classes=4)


def test_pil_images_keep_their_channels() -> None:
    def grey(image: torch.Tensor, item: int) -> Image.Image:
        return Image.fromarray(image[0].numpy())

    data = data_from(Pairs(10, grey), Pairs(4, grey), classes=4)
    assert data.image_shape == (1, 8, 8)
    assert torch.equal(data.train.images[0], Pairs(10).images[int(data.train.index[0])][:1])
