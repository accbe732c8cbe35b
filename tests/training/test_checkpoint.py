"""A checkpoint comes back bit for bit, refuses what it is not, and executes nothing."""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from condexp.errors import InputError
from condexp.training.checkpoint import SEAL, Checkpoint, read_checkpoint
from condexp.training.choices import RunState
from condexp.training.events import RowCounts
from condexp.training.optimizers import build_optimizer
from condexp.training.seeding import random_state

Trained = tuple[nn.Module, torch.optim.Optimizer]


def fresh(name: str = "sgd") -> Trained:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    momentum = 0.9 if name == "sgd" else 0.0
    return model, build_optimizer(name, model.parameters(), lr=0.1, momentum=momentum)


def train(trained: Trained, num_steps: int) -> None:
    model, optimizer = trained
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()


def capture(trained: Trained, step: int) -> Checkpoint:
    model, optimizer = trained
    return Checkpoint(
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        random=random_state(),
        step=step,
        epoch=0,
        position=step,
        committed=RowCounts(1, step, 0),
        config_sha256="c" * 64,
        data_sha256="d" * 64,
        state=RunState.UNFINISHED,
    )


def written(checkpoint: Checkpoint) -> bytes:
    stream = io.BytesIO()
    checkpoint.write(stream)
    return stream.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    trained = fresh()
    train(trained, 2)
    (tmp_path / "checkpoint.pt").write_bytes(written(capture(trained, 2)))
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_training_goes_on_to_the_last_bit(tmp_path: Path, name: str) -> None:
    trained = fresh(name)
    train(trained, 2)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(written(capture(trained, 2)))
    train(trained, 3)
    expected = written(capture(trained, 5))
    resumed = fresh(name)
    torch.rand(9)  # what was drawn since must not matter
    read_checkpoint(path).restore(*resumed)
    train(resumed, 3)
    # Weights, buffers, optimizer and random states are all in there.
    assert written(capture(resumed, 5)) == expected


def test_round_trip(path: Path) -> None:
    trained = fresh()
    train(trained, 2)
    expected, loaded = capture(trained, 2), read_checkpoint(path)
    for name in ("step", "epoch", "position", "committed", "config_sha256", "data_sha256", "state"):
        assert getattr(loaded, name) == getattr(expected, name)
    assert loaded.model.keys() == expected.model.keys()
    assert all(torch.equal(loaded.model[name], value) for name, value in expected.model.items())


def test_the_contract(path: Path) -> None:
    fresh()[0].load_state_dict(torch.load(path, weights_only=True)["model"])


def test_it_holds_tensors_and_plain_types_alone(path: Path) -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                assert type(key) in {str, int}
                check(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                check(inner)
        else:
            assert type(value) in {torch.Tensor, str, int, float, bool, type(None)}

    check(torch.load(path, weights_only=True))


def test_same_state_same_bytes() -> None:
    trained = fresh()
    assert written(capture(trained, 0)) == written(capture(trained, 0))


class Malice:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["model", "optimizer", "random", "step", "state", "version"])
def test_nothing_is_executed(path: Path, place: str) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | {place: Malice(path.with_name("harm"))}, path)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    # Nor by a plain pickle, which is what torch's oldest format is.
    path.write_bytes(pickle.dumps(Malice(path.with_name("harm"))))
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    assert not path.with_name("harm").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip", pickle.dumps({"model": 1}, protocol=2)],
    ids=["empty", "no zip", "a plain pickle"],
)
def test_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged or not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("num_bytes", [500, 5000, 15000])
def test_cut_short(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])
    with pytest.raises(InputError, match="is damaged or not a checkpoint"):
        read_checkpoint(path)


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: {"state_dict": {}},
            "damaged or not a checkpoint of condexp: it lacks version; it holds state",
        ),
        (lambda c: {**c, "model": nn.Linear(2, 2)}, "holds more than tensors .* never executed"),
        (lambda c: c | {"version": 3}, "has version 3; this condexp reads version 2"),
        (lambda c: c | {"committed": {"rows": 1}}, "unexpected keyword"),
        (lambda c: c | {"state": "won"}, "'won' is not a valid RunState"),
        (lambda c: c | {"step": [1]}, "damaged"),
        (lambda c: [c], "damaged"),
    ],
)
def test_foreign_content(path: Path, change: Change, message: str) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path)
    content = path.read_bytes()
    path.write_bytes(content + SEAL + hashlib.sha256(content).digest())
    with pytest.raises(InputError, match=message) as refused:
        read_checkpoint(path)
    assert "weights_only" not in str(refused.value)  # torch's own advice is to execute it


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_another_network_is_refused(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    other = nn.Sequential(nn.Linear(3, 5))
    optimizer = build_optimizer("sgd", other.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"another network or optimizer.*run.on_existing=restart"):
        checkpoint.restore(other, optimizer)
    damaged = replace(checkpoint, random=dict(checkpoint.random) | {"torch": torch.zeros(3)})
    with pytest.raises(InputError, match="another network or optimizer"):
        damaged.restore(*fresh())
