import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from condexp.data.augment import augment_batch
from condexp.data.dataset import Split
from condexp.data.transforms import (
    RESIZE_CHUNK,
    class_balanced_subset,
    image_dataset,
    pixel_statistics,
    resize,
)
from condexp.errors import InputError
from tests.from_conf import make_spec


def random_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def labelled(counts: list[int]) -> Split:
    """Classes of the given sizes in a mixed order; each input is its own index."""
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))]
    return Split(torch.arange(len(targets)), targets)


@pytest.mark.parametrize("size", [1, 7, 10, 33, 60])
def test_subset_is_balanced_unique_and_in_order(size: int) -> None:
    split = labelled([30, 20, 25])
    subset = class_balanced_subset(split, size)
    counts = subset.targets.bincount(minlength=3)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1
    assert (subset.inputs.diff() > 0).all()
    assert torch.equal(subset.targets, split.targets[subset.inputs])


def test_subset_takes_more_of_others_where_a_class_runs_out() -> None:
    subset = class_balanced_subset(labelled([3, 20, 30]), 23)
    assert subset.targets.bincount().tolist() == [3, 10, 10]
    assert len(class_balanced_subset(labelled([3, 20, 30]), 53)) == 53


def test_subset_is_a_function_of_its_seed_and_random() -> None:
    split = labelled([30, 20, 25])
    first = class_balanced_subset(split, 30).inputs
    torch.manual_seed(7)
    assert torch.equal(class_balanced_subset(split, 30).inputs, first)
    assert not torch.equal(class_balanced_subset(split, 30, seed=1).inputs, first)
    # Every sample is drawn sooner or later: missed with probability (1 − 10/30)^100 < 10⁻¹⁷.
    drawn = {
        int(i) for seed in range(100) for i in class_balanced_subset(split, 30, seed=seed).inputs
    }
    assert len(drawn) == 75


@pytest.mark.parametrize("size", [0, -1, 76])
def test_subset_of_an_impossible_size(size: int) -> None:
    with pytest.raises(InputError, match=f"subset of {size} samples.*1 to 75"):
        class_balanced_subset(labelled([30, 20, 25]), size)


@pytest.mark.parametrize("size", [8, 14, 32, 45])
def test_resize_agrees_with_pillow(size: int) -> None:
    images = random_images(3, 2, 28, 20)
    resized = resize(Split(images, torch.zeros(3)), size).inputs
    assert (resized.shape, resized.dtype) == ((3, 2, size, size), torch.uint8)
    for image, result in zip(images.flatten(0, 1), resized.flatten(0, 1), strict=True):
        pillow = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BILINEAR)
        # Pillow rounds between its two passes, in fixed point: one level at most.
        difference = np.asarray(pillow).astype(int) - result.numpy().astype(int)
        assert abs(difference).max() <= 1


def test_resize_in_chunks_keeps_every_image_and_its_level() -> None:
    levels = (torch.arange(RESIZE_CHUNK + 5) % 256).to(torch.uint8)
    split = Split(levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), levels.long())
    resized = resize(split, 6)
    assert torch.equal(resized.inputs, levels.view(-1, 1, 1, 1).expand(-1, 1, 6, 6))
    assert resize(resized, 6) is resized
    with pytest.raises(InputError, match="image_size is 0"):
        resize(split, 0)


def test_statistics_are_exact_and_guard_a_constant_channel() -> None:
    images = random_images(50, 3, 5, 4)
    images[:, 2] = 7
    mean, std = pixel_statistics(images)
    # Sums of 1000 numbers in two orders.
    assert mean == pytest.approx(images.double().mean((0, 2, 3)).tolist(), rel=1e-13)
    expected = images.double().std((0, 2, 3), correction=0).tolist()
    assert std[:2] == pytest.approx(expected[:2], rel=1e-13)
    assert std[2] == 1.0


def test_image_dataset_subsets_then_resizes_then_takes_statistics() -> None:
    split = Split(random_images(40, 3, 10, 10), torch.arange(40) % 4)
    spec = make_spec("dataset", "digits", image_size=8, subset={"train": 12, "test": 8})
    dataset = image_dataset(spec, split, split, 4)
    expected = resize(class_balanced_subset(split, 12), 8)
    assert torch.equal(dataset.train.inputs, expected.inputs)
    assert (dataset.mean, dataset.std) == pixel_statistics(expected.inputs)
    assert (len(dataset.test), dataset.input_shape) == (8, (3, 8, 8))


@pytest.mark.parametrize("shape", [(300, 1, 10, 10), (300, 3, 12, 11), (40, 1, 5, 6)])
def test_augmented_images_are_crops_of_the_reflected_image(shape: tuple[int, ...]) -> None:
    """Against numpy's padding: each image is one of 81 crops, flipped or not, by itself."""
    images = random_images(*shape)
    augmented = augment_batch(images, torch.Generator().manual_seed(0))
    assert (augmented.shape, augmented.dtype) == (images.shape, images.dtype)
    found = []
    for image, result in zip(images.numpy(), augmented.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        matches = [
            (row, col, flip)
            for row in range(9)
            for col in range(9)
            for flip in (1, -1)
            if np.array_equal(
                padded[:, row : row + shape[2], col : col + shape[3]][..., ::flip], result
            )
        ]
        assert matches
        found += matches
    rows, cols, flips = (np.array(each) for each in zip(*found, strict=True))
    # On 9 px and less a reflected crop may equal a flipped one: who was drawn is not to be seen.
    if shape[0] == 300:
        assert len(found) == 300
        # Each of nine offsets is missed by 300 draws with probability (8/9)^300 < 10⁻¹⁵.
        assert set(rows) == set(cols) == set(range(9))
        # Binomial(300, ½): five deviations are 43.
        assert abs((flips == 1).sum() - 150) < 43
        # Offsets are independent: a correlation's deviation is 1/√300.
        assert abs(np.corrcoef(rows, cols)[0, 1]) < 5 / np.sqrt(300)


def test_augmentation_is_a_function_of_its_generator() -> None:
    images = random_images(20, 1, 8, 8)
    first, again, other = (
        augment_batch(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # The same crop in any dtype.
    floats = augment_batch(images.double(), torch.Generator().manual_seed(0))
    assert torch.equal(floats, first.double())
