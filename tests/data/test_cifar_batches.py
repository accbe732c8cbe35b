"""Batches in CIFAR's format whose content is the user's own."""

import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from condexp.errors import InputError
from tests import in_process
from tests.data.archives import write_cifar
from tests.data.test_cifar import KINDS, Explosive
from tests.from_conf import load

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (12, 3072), dtype=np.uint8)


def write(path: Path, batch: Any, protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(batch, protocol=protocol))


def batch(**changes: Any) -> dict[str, Any]:
    return {"data": PIXELS, "labels": [0, 1, 2] * 4, **changes}


@pytest.mark.parametrize(("kind", "name", "num_classes"), KINDS)
def test_published_files_are_read_as_by_their_own_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, num_classes: int
) -> None:
    folder = write_cifar(tmp_path, monkeypatch, kind)
    published = load(name, root=tmp_path)
    for root in (tmp_path, folder):
        own = load("cifar_batches", root=root)
        assert own.checksum == published.checksum
        assert (own.mean, own.std) == (published.mean, published.std)
        for mine, theirs in ((own.train, published.train), (own.test, published.test)):
            assert torch.equal(mine.inputs, theirs.inputs)
            assert torch.equal(mine.targets, theirs.targets)
    largest = max(published.train.targets.max(), published.test.targets.max())
    assert own.num_outputs == largest + 1 <= num_classes


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_and_kind_of_labels(tmp_path: Path, protocol: int) -> None:
    kinds = [[0, 1, 2] * 4, np.arange(12) % 3, list(np.arange(12, dtype=np.uint8) % 3)]
    for number in (11, 2, 10):  # a number, not a text: 2 comes before 10
        write(tmp_path / f"data_batch_{number}", batch(data=PIXELS + np.uint8(number)), protocol)
    for labels in kinds:
        for name in ("labels", b"labels"):
            write(tmp_path / "test_batch", {b"data": PIXELS, name: labels}, protocol)
            data = load("cifar_batches", root=tmp_path)
            assert data.test.targets.tolist() == [0, 1, 2] * 4
            assert data.test.inputs.numpy().reshape(12, -1).tolist() == PIXELS.tolist()
    expected = np.concatenate([PIXELS + np.uint8(number) for number in (2, 10, 11)])
    assert data.train.inputs.numpy().reshape(36, -1).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({"data": PIXELS}, "holds data: it needs data, and labels or fine_labels"),
        (batch(data=PIXELS[:, :100]), r"data is uint8 \[12, 100\]; it must be uint8 \[N, 3072\]"),
        (batch(data=PIXELS.astype(float)), r"data is float64 \[12, 3072\]"),
        (batch(data=PIXELS.tolist()), "data is a list"),
        (batch(labels=[0, 1]), r"labels must be 12 whole numbers .* it is int64 \[2\]"),
        (batch(labels=[0, 1, -1] * 4), "labels must be 12 whole numbers from 0 on"),
        (batch(labels=[0.5] * 12), r"labels must be 12 whole numbers .* it is float64 \[12\]"),
    ],
)
def test_what_is_no_batch(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path / "train", content)
    write(tmp_path / "test", batch())
    with pytest.raises(InputError, match=rf"{tmp_path / 'train'}:? {message}"):
        load("cifar_batches", root=tmp_path)


def test_no_code_in_a_batch_is_run(tmp_path: Path) -> None:
    write(tmp_path / "test", batch())
    write(tmp_path / "train", batch(filenames=Explosive(tmp_path / "exploded")))
    with pytest.raises(InputError, match=r"asks for pathlib\S*\.Path\.?\S*, .*it was not called"):
        load("cifar_batches", root=tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_no_damaged_batch_ends_in_a_traceback(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": PIXELS[:1], "labels": [0]}, protocol=2)
    write(tmp_path / "test", batch())
    places = GENERATOR.integers(0, len(whole), 150)
    damaged = [whole[:place] for place in places[:30]]
    for place in [*range(150), *places]:  # the head is all opcodes
        byte = bytes([GENERATOR.integers(256)])
        damaged.append(whole[:place] + byte + whole[place + 1 :])
    for content in damaged:
        (tmp_path / "train").write_bytes(content)
        with suppress(InputError):  # any other exception fails
            load("cifar_batches", root=tmp_path)


def test_what_is_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"has no data_batch_1, … with test_batch, and no train"):
        load("cifar_batches", root=tmp_path)
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR100)
    with pytest.raises(InputError, match=r"in more than one form: .*cifar-10.*cifar-100"):
        load("cifar_batches", root=tmp_path)


def test_other_batches_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condexp.runs.build._loaded", {})
    brief = ["trainer.steps=1", "trainer.batch_size=4", "model.depth=2", "model.width=4",
             "dataset=cifar_batches", "dataset.image_size=4"]  # fmt: skip
    folders = []
    for number in range(2):
        write(tmp_path / f"data{number}" / "train", batch(data=PIXELS + np.uint8(number)))
        write(tmp_path / f"data{number}" / "test", batch())
        root = f"dataset.root={tmp_path / f'data{number}'}"
        folders.append(in_process.run(tmp_path, *brief, root).folder)
    assert folders[0] != folders[1]


def test_the_refusal_of_published_names_leads_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    write(folder / "test_batch", batch())
    with pytest.raises(InputError, match=f"dataset=cifar_batches dataset.root={tmp_path} takes"):
        load("cifar10", root=tmp_path)
    assert len(load("cifar_batches", root=tmp_path).test) == 12
