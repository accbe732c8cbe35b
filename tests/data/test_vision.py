import gzip
from pathlib import Path

import pytest
import torch

from condexp.data import vision
from condexp.data.vision import IDX_STEMS, load_fashion_mnist
from condexp.errors import InputError
from tests.data.idx_files import idx_bytes, write_mnist_like


@pytest.fixture(autouse=True)
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Debian's package, until a test writes it."""
    folder = tmp_path / "debian"
    monkeypatch.setattr(vision, "DEBIAN_FASHION_MNIST", folder)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("root/FashionMNIST/raw", "root"),
        ("root", "root"),
        ("data/FashionMNIST/raw", None),
        ("debian", None),
    ],
)
def test_is_found_in_each_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    root: str | None,
    compressed: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels, test_images, test_labels = write_mnist_like(
        tmp_path / folder, compressed=compressed
    )
    dataset = load_fashion_mnist(root)
    assert torch.equal(dataset.train.inputs, images.unsqueeze(1))
    assert torch.equal(dataset.train.targets, labels.long())
    assert torch.equal(dataset.test.inputs, test_images.unsqueeze(1))
    assert torch.equal(dataset.test.targets, test_labels.long())
    assert (dataset.input_shape, dataset.num_outputs) == ((1, 28, 28), 10)


def test_a_root_that_was_named_is_the_only_place(tmp_path: Path, debian: Path) -> None:
    write_mnist_like(debian)
    with pytest.raises(InputError, match="not in .*elsewhere"):
        load_fashion_mnist(tmp_path / "elsewhere")


def test_plain_and_gzipped_files_may_be_mixed(tmp_path: Path) -> None:
    arrays = write_mnist_like(tmp_path)
    (tmp_path / f"{IDX_STEMS[0]}.gz").unlink()
    (tmp_path / IDX_STEMS[0]).write_bytes(idx_bytes(arrays[0]))
    assert torch.equal(load_fashion_mnist(tmp_path).train.inputs[:, 0], arrays[0])


def test_subset_and_size(tmp_path: Path) -> None:
    write_mnist_like(tmp_path)
    dataset = load_fashion_mnist(tmp_path, image_size=8, subset_train=20, subset_test=10)
    assert dataset.train.inputs.shape == (20, 1, 8, 8)
    assert dataset.train.targets.bincount().tolist() == [2] * 10
    assert dataset.test.targets.bincount().tolist() == [1] * 10
    assert dataset.checksum != load_fashion_mnist(tmp_path).checksum


def test_missing_files_say_what_where_and_how(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "root")
    (tmp_path / "root" / f"{IDX_STEMS[2]}.gz").unlink()
    with pytest.raises(InputError) as caught:
        load_fashion_mnist(tmp_path / "root")
    message = str(caught.value)
    assert IDX_STEMS[2] in message
    assert f"{tmp_path / 'root' / 'FashionMNIST' / 'raw'} (no such folder)" in message
    assert f"{tmp_path / 'root'} (3 of 4 there)" in message
    assert "dataset-fashion-mnist" in message
    assert f'FashionMNIST("{tmp_path / "root"}", download=True)' in message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (torch.zeros(39, dtype=torch.uint8), r"\(40, 28, 28\).*\(39,\)"),
        (torch.full((40,), 10, dtype=torch.uint8), "class 10; allowed are 0 to 9"),
        (torch.zeros(40, 1, dtype=torch.uint8), r"must be \[N, H, W\] and \[N\]"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, array: torch.Tensor, message: str) -> None:
    write_mnist_like(tmp_path)
    (tmp_path / f"{IDX_STEMS[1]}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    with pytest.raises(InputError, match=message):
        load_fashion_mnist(tmp_path)
