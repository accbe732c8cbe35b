from pathlib import Path

import pytest
import scipy.io
import torch

from condexp.errors import InputError
from tests.data.archives import write_svhn
from tests.from_conf import load


def test_images_and_labels_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svhn(tmp_path, monkeypatch)
    dataset = load("svhn", root=tmp_path)
    for split, name in ((dataset.train, "train_32x32.mat"), (dataset.test, "test_32x32.mat")):
        stored = scipy.io.loadmat(tmp_path / name)
        for index in range(len(split)):
            image = torch.from_numpy(stored["X"][..., index]).permute(2, 0, 1)
            assert torch.equal(split.inputs[index], image)
        # The digit 0 is stored as 10.
        assert split.targets.tolist() == [label % 10 for label in stored["y"][:, 0]]
    assert 0 in dataset.train.targets
    assert (dataset.input_shape, dataset.num_outputs) == ((3, 32, 32), 10)
    assert (dataset.train.inputs.dtype, dataset.train.targets.dtype) == (torch.uint8, torch.int64)
    assert dataset.train.inputs.is_contiguous()


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    with (tmp_path / "test_32x32.mat").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"test_32x32\.mat is not the published file"):
        load("svhn", root=tmp_path)
    (tmp_path / "train_32x32.mat").unlink()
    with pytest.raises(InputError, match=r"1 of 2 there.*condexp data fetch svhn"):
        load("svhn", root=tmp_path)
