import gzip
from pathlib import Path

import pytest
import torch

from condexp.data import sources
from condexp.errors import InputError
from tests.data.archives import IDX_STEMS, idx_bytes, write_mnist_like
from tests.from_conf import load


@pytest.fixture(autouse=True)
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Debian's package, until a test writes it."""
    folder = tmp_path / "debian"
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", folder)
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
    dataset = load("fashion_mnist", root=root)
    assert torch.equal(dataset.train.inputs, images.unsqueeze(1))
    assert torch.equal(dataset.train.targets, labels.long())
    assert torch.equal(dataset.test.inputs, test_images.unsqueeze(1))
    assert torch.equal(dataset.test.targets, test_labels.long())
    assert (dataset.input_shape, dataset.num_outputs) == ((1, 28, 28), 10)


@pytest.mark.parametrize("folder", ["MNIST/raw", "."])
def test_mnist_is_the_same_format_in_its_own_folder(tmp_path: Path, folder: str) -> None:
    images, labels, *_ = write_mnist_like(tmp_path / folder)
    dataset = load("mnist", root=tmp_path)
    assert torch.equal(dataset.train.inputs, images.unsqueeze(1))
    assert torch.equal(dataset.train.targets, labels.long())
    assert (dataset.name, len(dataset.test), dataset.num_outputs) == ("mnist", 20, 10)


def test_mnist_agrees_with_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import MNIST

    write_mnist_like(tmp_path / "MNIST" / "raw", compressed=False)
    ours = load("mnist", root=tmp_path)
    for split, theirs in ((ours.train, MNIST(tmp_path)), (ours.test, MNIST(tmp_path, train=False))):
        assert torch.equal(split.inputs[:, 0], theirs.data)
        assert torch.equal(split.targets, theirs.targets)


def test_a_root_that_was_named_is_the_only_place(tmp_path: Path, debian: Path) -> None:
    write_mnist_like(debian)
    with pytest.raises(InputError, match=r"not in .*elsewhere"):
        load("fashion_mnist", root=tmp_path / "elsewhere")


def test_plain_and_gzipped_files_may_be_mixed(tmp_path: Path) -> None:
    arrays = write_mnist_like(tmp_path)
    (tmp_path / f"{IDX_STEMS[0]}.gz").unlink()
    (tmp_path / IDX_STEMS[0]).write_bytes(idx_bytes(arrays[0]))
    assert torch.equal(load("fashion_mnist", root=tmp_path).train.inputs[:, 0], arrays[0])


def test_subset_and_size(tmp_path: Path) -> None:
    write_mnist_like(tmp_path)
    dataset = load("fashion_mnist", root=tmp_path, image_size=8, subset={"train": 20, "test": 10})
    assert dataset.train.inputs.shape == (20, 1, 8, 8)
    assert dataset.train.targets.bincount().tolist() == [2] * 10
    assert dataset.test.targets.bincount().tolist() == [1] * 10
    assert dataset.checksum != load("fashion_mnist", root=tmp_path).checksum


def test_missing_files_say_what_where_and_how(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "root")
    (tmp_path / "root" / f"{IDX_STEMS[2]}.gz").unlink()
    with pytest.raises(InputError) as caught:
        load("fashion_mnist", root=tmp_path / "root")
    message = str(caught.value)
    assert IDX_STEMS[2] in message
    assert f"{tmp_path / 'root' / 'FashionMNIST' / 'raw'} (no such folder)" in message
    assert f"{tmp_path / 'root'} (3 of 4 there)" in message
    assert f"`condexp data fetch fashion_mnist --root {tmp_path / 'root'}`" in message


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
        load("fashion_mnist", root=tmp_path)
