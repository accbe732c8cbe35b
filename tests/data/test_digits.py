import pytest
import torch
from sklearn import datasets

from condexp.data.dataset import Dataset, Task
from tests.from_conf import load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_sizes_and_types(digits: Dataset) -> None:
    assert digits.train.inputs.shape == (1437, 1, 8, 8)
    assert digits.test.inputs.shape == (360, 1, 8, 8)
    assert digits.train.inputs.dtype == torch.uint8
    assert digits.train.targets.dtype == torch.int64
    assert (digits.input_shape, digits.num_outputs) == ((1, 8, 8), 10)
    assert (digits.name, digits.task) == ("digits", Task.CLASSIFICATION)


def test_the_split_is_stratified_and_partitions_the_originals(digits: Dataset) -> None:
    bunch = datasets.load_digits()
    assert digits.test.targets.bincount().tolist() == [36] * 10
    ours = torch.cat([digits.train.inputs, digits.test.inputs]).flatten(1)
    targets = torch.cat([digits.train.targets, digits.test.targets])
    rows = sorted([*row, target] for row, target in zip((ours / 15).tolist(), targets, strict=True))
    originals = [[*row, target] for row, target in zip(bunch.data, bunch.target, strict=True)]
    assert rows == sorted(originals)  # exactly: the levels are whole numbers


def test_the_split_never_changes(digits: Dataset) -> None:
    assert digits.checksum == "e40184d903506d9e87a5cb44a83f9a3fbd43bf331e2bcb3acc5ab1e1eb6edc33"
    torch.manual_seed(5)
    assert load("digits").checksum == digits.checksum


def test_statistics_are_those_of_the_training_split(digits: Dataset) -> None:
    pixels = digits.train.inputs.double()
    # Sums of 10⁵ numbers in two orders.
    assert digits.mean == pytest.approx([pixels.mean().item()], rel=1e-12)
    assert digits.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-12)


def test_subset_and_size() -> None:
    dataset = load("digits", image_size=12, subset={"train": 25, "test": 10})
    assert dataset.train.inputs.shape == (25, 1, 12, 12)
    assert sorted(dataset.train.targets.bincount().tolist()) == [2] * 5 + [3] * 5
    assert dataset.test.targets.bincount().tolist() == [1] * 10
