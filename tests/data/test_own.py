"""The user's own data: arrays in an .npz, functions that return data sets, class folders."""

import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from condexp.data.dataset import Dataset, Task
from condexp.data.loaders import Batches
from condexp.errors import InputError
from tests.from_conf import load

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (12, 9, 8), dtype=np.uint8)
COLOUR = GENERATOR.integers(0, 256, (12, 9, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def save(path: Path, **changes: Any) -> Path:
    arrays = {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:6], "y_test": LABELS[:6]}
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


def arrays(path: Path, **changes: Any) -> Dataset:
    return load("arrays", root=str(path), **changes)


@pytest.mark.parametrize("labels", ["<i8", ">i4", "u1"])
def test_images_of_every_layout_come_with_channels_first(tmp_path: Path, labels: str) -> None:
    y = LABELS.astype(labels)
    grey = arrays(save(tmp_path / "grey.npz", y_train=y, y_test=y[:6]))
    assert torch.equal(grey.train.inputs, torch.from_numpy(GREY)[:, None])
    assert grey.train.targets.tolist() == LABELS.tolist()
    assert (grey.task, grey.num_outputs, grey.input_shape) == (Task.CLASSIFICATION, 3, (1, 9, 8))
    last = save(tmp_path / "last.npz", x_train=COLOUR, x_test=COLOUR[:6])
    moved = np.moveaxis(COLOUR, 3, 1)
    first = save(tmp_path / "first.npz", x_train=moved, x_test=moved[:6])
    assert torch.equal(arrays(last).train.inputs, torch.from_numpy(moved.copy()))
    assert arrays(last).checksum == arrays(first).checksum != grey.checksum
    mean = tuple(COLOUR.reshape(-1, 3).mean(0))
    assert arrays(last).mean == pytest.approx(mean, rel=1e-12)


def test_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    x = GENERATOR.standard_normal((12, 5)).astype(">f8")
    y = GENERATOR.standard_normal(12)
    dataset = arrays(save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y))
    assert (dataset.task, dataset.num_outputs) == (Task.REGRESSION, 1)
    batches = Batches(dataset.train, mean=dataset.mean, std=dataset.std, dtype=torch.float64)
    ((inputs, targets),) = batches.epoch()
    assert np.array_equal(inputs.numpy(), x)
    assert np.array_equal(targets.numpy(), y[:, None])
    small = arrays(tmp_path / "a.npz", subset={"train": 4, "test": None})
    assert len(small.train) == 4


def test_grey_images_are_repeated_in_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz")
    grey, three = arrays(path), arrays(path, channels=3)
    assert three.input_shape == (3, 9, 8)
    assert all(torch.equal(three.train.inputs[:, c], grey.train.inputs[:, 0]) for c in range(3))
    assert (three.mean, three.std) == (3 * grey.mean, 3 * grey.std)
    assert three.checksum == grey.checksum  # of what is stored
    assert arrays(path, channels=1).input_shape == (1, 9, 8)
    colour = save(tmp_path / "colour.npz", x_train=COLOUR, x_test=COLOUR[:6])
    with pytest.raises(InputError, match=r"dataset.channels=1: it repeats grey images .* \(3, 9"):
        arrays(colour, channels=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"has no y_test: it holds x_train.* needs x_train, y_train, x_test"),
        ({"y_train": LABELS[:5]}, r"x_train is uint8 \[12, 9, 8\] and y_train int64 \[5\]"),
        ({"x_train": GREY.astype(np.int32)}, r"x_train is int32 .*uint8 \[N, H, W\]"),
        ({"x_train": GREY[:, None, :3, :3, None]}, r"x_train is uint8 \[12, 1, 3, 3, 1\]"),
        ({"y_train": LABELS - 1}, "y_train holds -1: classes are numbered from 0 on"),
        ({"y_train": LABELS.astype(str)}, "y_train is <U.*: give classes"),
        ({"x_test": COLOUR[:6]}, r"test samples are|the test samples inputs \[3, 9, 8\]"),
        ({"x_train": np.full((12, 2), np.nan)}, "x_train holds NaN"),
        ({"x_train": np.array([object()] * 12)}, "never unpickled"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        arrays(save(tmp_path / "a.npz", **changes))


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()] * 12)
    save(tmp_path / "a.npz", x_train=bomb)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "c.npz").write_bytes(b"PK\3\4 no archive")
    np.save(tmp_path / "d.npy", GREY)
    for name in ("a.npz", "b.npz", "c.npz", "d.npy", "none.npz"):
        with pytest.raises(InputError, match=r"x_train, y_train|never unpickled"):
            arrays(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


SETS = """
import random
import numpy as np
import torch
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData

def tensors(num=6):
    x = torch.arange(num * 4.0).view(num, 4)
    return TensorDataset(x, torch.arange(num) % 2), TensorDataset(x[:2], torch.arange(2))

def pictures(transform=None):
    return [FakeData(size, (3, 10, 10), 4, transform, random_offset=size) for size in (8, 4)]

def cropped():
    return pictures(transforms.RandomCrop(8))

def mapping():
    rows = [{"image": np.full((5, 5), i, np.uint8), "label": i % 2} for i in range(4)]
    return rows, rows[:2]

def drawn():
    rows = [(np.array([random.random(), np.random.rand(), float(torch.rand(()))]), i)
            for i in range(3)]
    return rows, rows

def three():
    return [(1.0, 2, 3)], [(1.0, 2, 3)]

def one():
    return TensorDataset(torch.zeros(2, 2))

def uneven():
    return [(np.zeros(2), 0), (np.zeros(3), 1)], [(np.zeros(2), 0)]
"""


@pytest.fixture
def my_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_sets.py").write_text(SETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_sets", None)


def imported(name: str, **kwargs: Any) -> Dataset:
    return load("import", target=f"my_sets:{name}", kwargs=kwargs)


@pytest.mark.usefixtures("my_sets")
def test_data_sets_of_torch_torchvision_and_mappings() -> None:
    tensors = imported("tensors", num=8)
    assert (tensors.input_shape, tensors.num_outputs, len(tensors.train)) == ((4,), 2, 8)
    assert torch.equal(tensors.train.inputs, torch.arange(32.0).view(8, 4))
    pictures = imported("pictures")
    assert (pictures.input_shape, pictures.train.inputs.dtype) == ((3, 10, 10), torch.uint8)
    rows = imported("mapping")
    assert rows.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert imported("tensors").checksum == imported("tensors").checksum != tensors.checksum


@pytest.mark.usefixtures("my_sets")
def test_a_load_draws_the_same_and_disturbs_nobody() -> None:
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    first = imported("drawn")
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.rand(3)
    assert imported("drawn").checksum == first.checksum
    assert imported("cropped").input_shape == (3, 8, 8)
    assert imported("cropped").checksum == imported("cropped").checksum


@pytest.mark.usefixtures("my_sets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", r"a sample is tuple of float, int, int; it must be a pair"),
        ("one", r"gives TensorDataset: return \(train, test\)"),
        ("uneven", r"inputs of different shapes, \(2,\) and \(3,\): resize or crop"),
        ("tensor", r"my_sets has no 'tensor'. Did you mean 'tensors'"),
    ],
)
def test_what_a_function_may_not_return(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(name)
    with pytest.raises(InputError, match=r"set its arguments as dataset.kwargs.name=value"):
        imported("tensors", size=3)
    with pytest.raises(InputError, match=r"dataset.target='my_sets': give module:name"):
        load("import", target="my_sets", kwargs={})


@pytest.fixture
def photos(tmp_path: Path) -> Iterator[Path]:
    """Two classes of 10 × 10 px images: one of them grey, one of another size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for split, number in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = GENERATOR.integers(0, 256, (10, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    Image.fromarray(GREY[0]).save(tmp_path / "train" / "dog" / "2.png")
    yield tmp_path
    torch.set_num_threads(threads)


def test_images_of_the_size_come_as_stored(photos: Path) -> None:
    dataset = load("folder", root=str(photos))
    assert (dataset.input_shape, dataset.num_outputs) == ((3, 10, 10), 2)
    ((inputs, targets),) = Batches(dataset.train).epoch()
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]
    for index, path in enumerate(sorted((photos / "train").rglob("*.png"))[:5]):
        with Image.open(path) as image:
            stored = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(inputs[index].to(torch.uint8), stored)
    assert dataset.mean == pytest.approx(inputs.mean((0, 2, 3)).tolist(), rel=1e-6)
    grey = load("folder", root=str(photos), channels=1, image_size=8)
    assert grey.input_shape == (1, 8, 8)
    assert len(grey.mean) == 1


def test_the_checksum_of_folders(photos: Path) -> None:
    def checksums() -> list[str]:
        return [
            load("folder", root=str(photos), checksum=of).checksum for of in ("sizes", "contents")
        ]

    before = checksums()
    image = photos / "test" / "cat" / "0.png"
    content = bytearray(image.read_bytes())
    content[-5] ^= 1  # a bit of the checksum of the last chunk, which holds nothing
    image.write_bytes(content)
    assert checksums()[0] == before[0]
    assert checksums()[1] != before[1]
    image.rename(image.with_name("other.png"))
    assert checksums()[0] != before[0]


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no such folder; it must hold train/<class>/"):
        load("folder", root=str(tmp_path / "none"))
    for name in ("train", "tests"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"has no folder test; .*Did you mean 'tests'"):
        load("folder", root=str(tmp_path))
