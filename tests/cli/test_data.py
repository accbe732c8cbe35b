"""``condexp data`` as its user meets it, and runs on what it fetched."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from condexp.data import imagenet
from condexp.runs.build import _loaded
from condexp.store.reader import open_run
from tests.data.archives import publish_idx, write_cifar, write_imagenet, write_mnist_like

Command = Callable[..., tuple[int, str, str]]
TINY = ["model.depth=2", "model.width=8", "trainer.batch_size=4", "trainer.steps=4",
        "analysis.schedule.log_spaced=2"]  # fmt: skip


@pytest.fixture
def condexp(
    condexp: Command, no_picture: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the command line in a folder of the test's own, each time as in a new process."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        _loaded.clear()
        return condexp(*args)

    return run


@pytest.fixture
def one_worker() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_fetch_verify_run(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(tmp_path / "web", monkeypatch, datasets.CIFAR10)
    shutil.rmtree(folder)
    code, out, err = condexp("run", "dataset=cifar10", *TINY)
    assert (code, out) == (2, "")
    assert "`condexp data fetch cifar10`" in err
    assert not (tmp_path / "outputs").exists()

    monkeypatch.setattr(
        datasets.CIFAR10, "url", (tmp_path / "web").as_uri() + "/cifar-10-python.tar.gz"
    )
    code, out, err = condexp("data", "fetch", "cifar10")
    assert (code, err) == (0, "")
    assert "pytorch/vision#9536" in out
    assert "--mirror URL" in out
    assert "complete in data/cifar-10-batches-py, all checksums agree" in out
    assert condexp("data", "fetch", "cifar10", "--mirror", "nowhere")[0] == 0  # it is there
    code, out, err = condexp("data", "verify", "cifar10")
    assert (code, err) == (0, "")
    assert "all 7 checksums agree" in out

    assert condexp("run", "dataset=cifar10", "dataset.augment=crop_flip", *TINY)[0] == 0
    (status,) = (tmp_path / "outputs").rglob("status.json")
    assert json.loads(status.read_text())["state"] == "complete"

    (tmp_path / "data" / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"tampered")
    code, out, err = condexp("data", "verify", "cifar10")
    assert (code, err) == (2, "")
    assert "data_batch_2 is not the published file: MD5" in out
    assert "data_batch_1" not in out
    code, _, err = condexp("run", "dataset=cifar10", "seed=2", *TINY)
    assert code == 2
    assert "data_batch_2 is not the published file" in err
    assert condexp("data", "fetch", "cifar10")[0] == 0
    assert condexp("data", "verify", "cifar10")[0] == 0


def test_root_and_local_archive(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist_like(tmp_path / "stick")
    publish_idx(monkeypatch, "mnist", tmp_path / "stick")
    code, out, _ = condexp("data", "fetch", "mnist", "--root", "here", "--archive", "stick")
    assert code == 0
    assert "note:" not in out
    assert "complete in here/MNIST/raw" in out
    assert condexp("data", "verify", "mnist", "--root", "here")[0] == 0
    code, _, err = condexp("data", "verify", "mnist")
    assert code == 2
    assert "data/MNIST/raw (no such folder)" in err
    shutil.copytree(tmp_path / "stick", tmp_path / "unpublished")
    (tmp_path / "unpublished" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"broken")
    code, out, _ = condexp("data", "verify", "mnist", "--root", "unpublished")
    assert code == 2
    assert "t10k-labels-idx1-ubyte can't be read" in out


@pytest.mark.parametrize("name", ["digits", "gaussian"])
def test_nothing_to_fetch(condexp: Command, tmp_path: Path, name: str) -> None:
    for action in ("fetch", "verify"):
        code, out, err = condexp("data", action, name)
        assert (code, err) == (0, "")
        assert f"{name}: nothing to {action}" in out
    assert not list(tmp_path.iterdir())


def test_imagenet_is_obtained_by_hand(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = condexp("data", "fetch", "imagenet")
    assert (code, out) == (2, "")
    for words in ("by hand", "ILSVRC2012_img_train.tar", "dataset.root"):
        assert words in err
    code, _, err = condexp("data", "verify", "imagenet")
    assert code == 2
    assert "data/imagenet or data" in err
    write_imagenet(tmp_path / "data" / "imagenet", num_train=2, num_val=1)
    code, out, _ = condexp("data", "verify", "imagenet")
    assert code == 2
    assert "6 training images in data/imagenet; ILSVRC 2012 has 1281167" in out
    for name, number in (("NUM_CLASSES", 3), ("NUM_TRAIN", 6), ("NUM_VAL", 3)):
        monkeypatch.setattr(imagenet, name, number)
    assert condexp("data", "verify", "imagenet")[0] == 0


@pytest.mark.usefixtures("one_worker")
def test_a_run_streams_from_the_disk_and_is_the_same_again(
    condexp: Command, tmp_path: Path
) -> None:
    write_imagenet(tmp_path / "data" / "imagenet", num_train=4, num_val=2)
    arguments = [
        "run",
        "dataset=imagenet",
        "dataset.image_size=8",
        "dataset.augment=crop_flip",
        *TINY,
    ]
    losses = []
    for root in ("first", "second"):
        code, _, err = condexp(*arguments, f"run.root={root}")
        assert (code, err) == (0, "")
        (status,) = (tmp_path / root).rglob("status.json")
        losses.append(open_run(status.parent).metrics["loss"].dropna().tolist())
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fetch", "cifar"], "unknown dataset 'cifar': allowed are digits, .*'cifar10'"),
        (["verify", "imagenett"], "Did you mean 'imagenet'"),
    ],
)
def test_unknown_names(condexp: Command, args: list[str], message: str) -> None:
    code, out, err = condexp("data", *args)
    assert (code, out) == (2, "")
    assert re.search(message, err)


@pytest.mark.parametrize(
    "args",
    [[], ["fetsch", "mnist"], ["fetch"], ["fetch", "mnist", "--mirror", "a", "--archive", "b"]],
)
def test_wrong_usage(condexp: Command, args: list[str]) -> None:
    code, _, err = condexp("data", *args)
    assert code == 2
    assert err.startswith("condexp: data")
    assert len(err.splitlines()) == 1
