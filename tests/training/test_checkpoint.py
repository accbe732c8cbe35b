"""A checkpoint comes back bit for bit, replaces the old one whole, and executes nothing."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from condexp.errors import InputError
from condexp.training.checkpoint import load_checkpoint, save_checkpoint
from condexp.training.optimizers import build_optimizer


@pytest.fixture
def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = build_optimizer("sgd", model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_round_trip(tmp_path: Path, trained: tuple[nn.Module, torch.optim.Optimizer]) -> None:
    model, optimizer = trained
    save_checkpoint(tmp_path / "checkpoint.pt", model, optimizer, step=2)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.step == 2
    assert loaded.model.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model[name], value)
    for index, state in optimizer.state_dict()["state"].items():
        buffer = loaded.optimizer["state"][index]["momentum_buffer"]
        assert torch.equal(buffer, state["momentum_buffer"])


def test_the_contract(tmp_path: Path, trained: tuple[nn.Module, torch.optim.Optimizer]) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, *trained, step=2)
    trained[0].load_state_dict(torch.load(path, weights_only=True)["model"])


def test_same_state_same_bytes(
    tmp_path: Path, trained: tuple[nn.Module, torch.optim.Optimizer]
) -> None:
    save_checkpoint(tmp_path / "a.pt", *trained, step=2)
    save_checkpoint(tmp_path / "b.pt", *trained, step=2)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path,
    trained: tuple[nn.Module, torch.optim.Optimizer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, *trained, step=1)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, *trained, step=2)
    assert load_checkpoint(path).step == 1


class Malice:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_is_executed(tmp_path: Path) -> None:
    torch.save({"model": Malice(tmp_path / "harm")}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"model": 1}, protocol=2)])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_cut_short(tmp_path: Path, trained: tuple[nn.Module, torch.optim.Optimizer]) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, *trained, step=2)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="is damaged or not a checkpoint"):
        load_checkpoint(path)


def test_foreign_dictionary(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged or not a checkpoint of condexp: 'model'"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
