"""Small archives in the formats of the real data sets, and their checksums in place of the real."""

import gzip
import hashlib
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from condexp.data.sources import IDX_FILES

IDX_STEMS = tuple(IDX_FILES["mnist"])


def idx_bytes(array: Tensor) -> bytes:
    header = bytes([0, 0, 8, array.dim()])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.numpy().tobytes()


def write_mnist_like(
    folder: Path, num_train: int = 40, num_test: int = 20, *, compressed: bool = True
) -> list[Tensor]:
    """Write the four files; return the arrays in the files' order."""
    generator = torch.Generator().manual_seed(0)
    arrays = []
    for size in (num_train, num_test):
        images = torch.randint(0, 256, (size, 28, 28), generator=generator, dtype=torch.uint8)
        arrays += [images, (torch.arange(size) % 10).to(torch.uint8)]
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in zip(IDX_STEMS, arrays, strict=True):
        content = idx_bytes(array)
        if compressed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)
    return arrays


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def publish_idx(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Make the packed files of a folder the published ones."""
    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    packed = [folder / f"{stem}.gz" for stem in IDX_STEMS]
    monkeypatch.setattr(kind, "resources", [(path.name, md5(path)) for path in packed])
    for path in packed:
        content = gzip.decompress(path.read_bytes())
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        monkeypatch.setitem(IDX_FILES[name], path.stem, digest)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> Path:
    """Write batches of four images and their archive, and make them the published ones."""
    folder = root / str(kind.base_folder)
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    fine = kind is datasets.CIFAR100
    for number, (name, _) in enumerate([*kind.train_list, *kind.test_list]):
        labels = [(number + image) % (100 if fine else 10) for image in range(4)]
        batch = {
            "batch_label": name,
            "data": generator.integers(0, 256, (4, 3072), dtype=np.uint8),
            "filenames": [f"{image}.png" for image in range(4)],
            ("fine_labels" if fine else "labels"): labels,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = kind.meta["filename"]
    (folder / meta).write_bytes(pickle.dumps({kind.meta["key"]: ["a class"]}, protocol=2))
    for table in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(kind, table)]
        monkeypatch.setattr(kind, table, sums)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / meta)})
    archive = root / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    return folder


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write two .mat files of twelve and six images, and make them the published ones."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    table = dict(datasets.SVHN.split_list)
    for split, size in (("train", 12), ("test", 6)):
        url, name, _ = table[split]
        images = generator.integers(0, 256, (32, 32, 3, size), dtype=np.uint8)
        labels = (np.arange(size, dtype=np.uint8) % 10 + 1)[:, None]
        scipy.io.savemat(root / name, {"X": images, "y": labels}, do_compression=True)
        table[split] = [url, name, md5(root / name)]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)


def write_arrays(path: Path) -> None:
    """Write twelve training and six test images of 8 × 8 px, in three classes."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (18, 8, 8), dtype=np.uint8), np.arange(18) % 3
    np.savez(path, x_train=images[6:], y_train=labels[6:], x_test=images[:6], y_test=labels[:6])


def write_imagenet(
    folder: Path, num_train: int = 6, num_val: int = 3, splits: Sequence[str] = ("train", "val")
) -> None:
    """Write three classes of JPEGs of many sizes, one of them grey."""
    generator = np.random.default_rng(0)
    for split, number in zip(splits, (num_train, num_val), strict=True):
        for name in ("n01440764", "n01443537", "n01484850"):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                height, width = generator.integers(20, 60, 2)
                shape = (height, width) if index == 1 else (height, width, 3)
                pixels = generator.integers(0, 256, shape, dtype=np.uint8)
                path = folder / split / name / f"{name}_{index}.JPEG"
                Image.fromarray(pixels).save(path, format="JPEG")
