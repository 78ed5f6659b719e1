"""AugmentTransform: the same images as RandAugment, in every place where people put a transform."""

import numpy as np
import pytest
import torch
from test_augment import random_batch
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from compress_aug.augment import AugmentTransform, LearnedAugment, RandAugment
from compress_aug.batch import Batch
from compress_aug.errors import DataError, RecipeError
from compress_aug.policies import Policy, PolicySchedule, Segment

STILL = RandAugment(crop_padding=0, flip=False)


def test_with_an_index_it_is_randaugment() -> None:
    batch = random_batch(20)
    expected = RandAugment()(batch, 9, 4, 2).images
    transform = AugmentTransform(magnitude=9, seed=2)
    assert torch.equal(transform(batch.images, index=batch.index, epoch=4), expected)
    images, labels = transform(batch.images, batch.targets, index=batch.index, epoch=4)
    assert torch.equal(images, expected)
    assert labels is batch.targets


def test_without_an_index_torchs_seed_decides() -> None:
    images = random_batch(20).images
    transform = AugmentTransform(magnitude=14)
    torch.manual_seed(0)
    first, second = transform(images), transform(images)
    torch.manual_seed(0)
    assert torch.equal(transform(images), first)
    assert not torch.equal(first, second)


def test_magnitude_may_change_and_be_none() -> None:
    images = random_batch(20).images
    transform = AugmentTransform(STILL, magnitude=None)
    assert torch.equal(transform(images), images)
    transform.magnitude = 20
    assert not torch.equal(transform(images), images)
    transform.magnitude = 31
    with pytest.raises(RecipeError, match=r"magnitude must be a whole number in 0\.\.30"):
        transform(images)
    with pytest.raises(RecipeError, match="magnitude"):
        AugmentTransform(magnitude=14.5)  # type: ignore[arg-type]
    assert "RandAugment, magnitude=31, seed=0" in repr(transform)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_as_tensor_tv_tensor_or_pillow(channels: int) -> None:
    image = random_batch(1, channels=channels).images[0]
    index = torch.tensor([7])
    transform = AugmentTransform(magnitude=20, seed=1)
    expected = transform(image[None], index=index)[0]
    assert torch.equal(transform(image, index=index), expected)
    picture = F.to_pil_image(image)
    changed = transform(picture, index=index)
    assert type(changed) is type(picture) and changed.mode == picture.mode
    assert torch.equal(F.pil_to_tensor(changed), expected)
    wrapped = transform(tv_tensors.Image(image), index=index)
    assert type(wrapped) is tv_tensors.Image
    assert torch.equal(wrapped.as_subclass(torch.Tensor), expected)


def test_in_a_torchvision_pipeline() -> None:
    pipeline = v2.Compose(
        [v2.PILToTensor(), AugmentTransform(STILL, magnitude=14), v2.ToDtype(torch.float32, scale=True)]
    )
    image = random_batch(1).images[0]
    torch.manual_seed(3)
    result, label = pipeline(F.to_pil_image(image), 5)
    torch.manual_seed(3)
    expected = AugmentTransform(STILL, magnitude=14)(image)
    assert label == 5
    assert torch.equal((result * 255).round().to(torch.uint8), expected)


class Images(Dataset):
    def __init__(self) -> None:
        self.images = random_batch(24).images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int]:
        return self.images[n], n


class Collate:
    def __init__(self) -> None:
        self.transform = AugmentTransform(STILL, magnitude=14)

    def __call__(self, samples: list) -> tuple[torch.Tensor, torch.Tensor]:
        images, places = default_collate(samples)
        return self.transform(images, places, index=places)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_collate_function_the_number_of_workers_does_not_matter(workers: int) -> None:
    loader = DataLoader(Images(), batch_size=8, collate_fn=Collate(), num_workers=workers)
    images = torch.cat([images for images, _ in loader])
    everything = Images().images
    batch = Batch(everything, torch.arange(24), torch.arange(24))
    assert torch.equal(images, STILL(batch, 14, 0, 0).images)


def test_boxes_and_masks_are_refused_and_labels_are_not() -> None:
    image = tv_tensors.Image(random_batch(1).images[0])
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(16, 16))
    with pytest.raises(DataError, match="boxes, masks and key points would stay where they were"):
        AugmentTransform()(image, {"boxes": boxes})
    assert AugmentTransform()(image, {"label": 3})[1] == {"label": 3}


def test_a_learned_policy_follows_the_epoch() -> None:
    invert = Policy.from_vector([0] * 10 + [10] + [0] * 49)
    schedule = PolicySchedule(2, (Segment(1, Policy.none()), Segment(1, invert)))
    transform = AugmentTransform(LearnedAugment(schedule, 2, crop_padding=0, flip=False))
    images = random_batch(40).images
    assert torch.equal(transform(images), images)
    assert not torch.equal(transform(images, epoch=1), images)
    transform.epoch = 1
    assert not torch.equal(v2.Compose([transform])(images), images)


def test_an_index_may_be_whatever_holds_whole_numbers() -> None:
    images = random_batch(3).images
    transform = AugmentTransform(magnitude=9)
    expected = transform(images, index=torch.tensor([4, 5, 6]))
    assert torch.equal(transform(images, index=[4, 5, 6]), expected)
    assert torch.equal(transform(images, index=np.array([4, 5, 6])), expected)
    assert torch.equal(transform(images[0], index=4), expected[0])
    with pytest.raises(DataError, match=r"index of the batch must be int64 \(3,\)"):
        transform(images, index=[0.5, 1, 2])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"augment": 14}, r"a magnitude is given by name: AugmentTransform\(magnitude=9\)"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(given: dict, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        AugmentTransform(**given)
    with pytest.raises(RecipeError, match="epoch must be a whole number"):
        AugmentTransform()(random_batch(2).images, epoch=1.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    batch = random_batch(20)
    transform = AugmentTransform(magnitude=9)
    result = transform(batch.images.cuda(), index=batch.index)
    assert result.is_cuda
    assert torch.equal(result.cpu(), transform(batch.images, index=batch.index))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.rand(2, 3, 8, 8), "normalise after it, not before"),
        (torch.zeros(8, 8, dtype=torch.uint8), "but their shape is"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), "1 or 3 channels"),
        ([[1, 2]], "uint8 tensors and Pillow images, but this is a list"),
        (np.zeros((4, 4, 3), dtype=np.uint8), "a ndarray: torch.from_numpy makes one of it"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"images\.permute\(0, 3, 1, 2\)"),
        (F.to_pil_image(torch.zeros(4, 8, 8, dtype=torch.uint8)), 'this one is "RGBA"'),
    ],
)
def test_wrong_images_are_refused(images: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        AugmentTransform()(images)
