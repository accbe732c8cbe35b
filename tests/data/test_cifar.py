import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import datasets

from condexp.errors import InputError
from tests.data.archives import md5, write_cifar
from tests.from_conf import load

KINDS = [(datasets.CIFAR10, "cifar10", 10), (datasets.CIFAR100, "cifar100", 100)]


@pytest.mark.parametrize(("kind", "name", "num_classes"), KINDS)
def test_the_batches_are_read_in_order_as_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, num_classes: int
) -> None:
    folder = write_cifar(tmp_path, monkeypatch, kind)
    dataset = load(name, root=tmp_path)
    for split, table in ((dataset.train, kind.train_list), (dataset.test, kind.test_list)):
        batches = [pickle.loads((folder / name).read_bytes()) for name, _ in table]
        # A row holds the red, the green, then the blue channel, each row by row.
        expected = torch.cat([torch.from_numpy(batch["data"]) for batch in batches])
        assert torch.equal(split.inputs, expected.view(-1, 3, 32, 32))
        assert split.inputs.is_contiguous()
        labels = [batch.get("labels", batch.get("fine_labels")) for batch in batches]
        assert split.targets.tolist() == [label for each in labels for label in each]
    assert (dataset.input_shape, dataset.num_outputs) == ((3, 32, 32), num_classes)
    assert (dataset.train.inputs.dtype, dataset.train.targets.dtype) == (torch.uint8, torch.int64)


def test_subset_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    dataset = load("cifar10", root=tmp_path, image_size=8, subset={"train": 6})
    assert dataset.train.inputs.shape == (6, 3, 8, 8)


class Explosive:
    """A pickle of it touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_tampered_batch_is_refused_and_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    (folder / name).write_bytes(pickle.dumps(Explosive(tmp_path / "exploded")))
    opened: list[object] = []
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(InputError) as caught:
        load("cifar10", root=tmp_path)
    assert f"{folder / name} is not the published file" in str(caught.value)
    assert md5(folder / name) in str(caught.value)
    assert "condexp data fetch cifar10" in str(caught.value)
    assert not opened  # not even the batches that are in order
    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / name).read_bytes())  # the test is about something
    assert (tmp_path / "exploded").exists()


def test_missing_files_say_what_where_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    (folder / "data_batch_2").unlink()
    with pytest.raises(InputError) as caught:
        load("cifar10", root=tmp_path)
    message = str(caught.value)
    assert "data_batch_2" in message
    assert f"{folder} (6 of 7 there)" in message
    assert f"`condexp data fetch cifar10 --root {tmp_path}`" in message
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"data/cifar-100-python \(no such folder\).*cifar100`"):
        load("cifar100")
