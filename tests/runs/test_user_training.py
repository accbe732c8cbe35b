"""The user's own optimizer, scheduler and loss: a file in the current folder, nothing else."""

import importlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from condexp.store.reader import open_run
from condexp.store.run_folder.identity import identity_config
from condexp.store.run_folder.status import State
from tests.in_process import contents, run, validated
from tests.runs.test_resume import TINY, stop

TRAINING = """
import torch


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["beta"])
                    p.sub_(group["lr"] * mean.sign())


class Halves(torch.optim.SGD):
    def __init__(self, model, lr):
        first, *rest = model.parameters()
        super().__init__([{"params": [first], "lr_scale": 0.5}, {"params": rest}], lr=lr)


class Keeps(Lion):
    def step(self):
        super().step()
        self.param_groups[0]["kept"] = type("Own", (), {})


def other_rate(params):
    return torch.optim.SGD(params, lr=7)


def root(lr, num_steps, power=0.5):
    return lambda step: lr * (1 - step / num_steps) ** power


def negative():
    return lambda step: -step


def smooth(num_outputs, amount):
    def loss(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=amount)

    return loss


def each():
    return torch.nn.CrossEntropyLoss(reduction="none")


def broken():
    def loss(outputs, targets):
        return outputs[:, 99].mean()

    return loss
"""
SMALL = [*TINY, "model.depth=2", "model.width=8"]
OWN = [
    "optimizer=import", "optimizer.target=my_training:Lion", "optimizer.kwargs.beta=0.8",
    "optimizer.lr=0.001", "scheduler=import", "scheduler.target=my_training:root",
    "loss=import", "loss.target=my_training:smooth", "loss.kwargs.amount=0.1",
]  # fmt: skip
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def my_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder that holds ``my_training.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_training.py").write_text(TRAINING)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("my_training", None)


def test_a_stopped_run_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "whole", *SMALL, *OWN).folder
    assert undisturbed is not None
    stop(tmp_path / "stopped", *SMALL, *OWN, at=5, by=signal.SIGTERM)
    result = run(tmp_path / "stopped", *SMALL, *OWN)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert contents(result.folder) == contents(undisturbed)
    metrics = open_run(result.folder).metrics
    rates = [0.001 * (1 - step / 9) ** 0.5 for step in range(9)]
    np.testing.assert_array_equal(metrics["lr"].dropna(), rates)
    identity = identity_config(open_run(result.folder).config)
    assert identity["optimizer"]["target"] == "my_training:Lion"
    assert identity["loss"]["kwargs"] == {"amount": 0.1}


def test_torchs_own_scheduler_and_a_scaled_group(tmp_path: Path) -> None:
    way = ["scheduler=import", "scheduler.target=torch.optim.lr_scheduler:ExponentialLR",
           "scheduler.kwargs.gamma=0.5", "optimizer=import", "optimizer.lr=0.25",
           "optimizer.target=my_training:Halves"]  # fmt: skip
    folder = run(tmp_path, *SMALL, *way).folder
    assert folder is not None
    np.testing.assert_array_equal(open_run(folder).metrics["lr"].dropna(), 0.25 * 0.5 ** np.r_[:9])
    assert b"lr_scale" in (folder / "checkpoint.pt").read_bytes()


def test_the_squared_error_of_classes(tmp_path: Path) -> None:
    """Of outputs near 0 against one-hot vectors of ten classes it is about a tenth."""
    folder = run(tmp_path, *SMALL, "loss=mse", "optimizer.lr=1e-6", "model.init_scale=1e-3").folder
    assert folder is not None
    np.testing.assert_allclose(open_run(folder).metrics["loss"].dropna(), 0.1, rtol=1e-2)


def test_the_usual_loss_is_no_part_of_the_name() -> None:
    """Runs of before there was a choice keep their folders."""
    assert "loss" not in identity_config(validated(*SMALL).plain)
    assert "loss" in identity_config(validated(*SMALL, "loss=mse").plain)


@pytest.mark.parametrize(
    ("group", "given", "message"),
    [
        ("optimizer", "Lio", "Did you mean 'Lion'"),
        ("optimizer", "Lion optimizer.kwargs.bet=1", "unexpected keyword argument 'bet'"),
        ("optimizer", "smooth optimizer.kwargs.amount=1", "needs|missing a required argument"),
        ("optimizer", "each", "gives 'CrossEntropyLoss': give a subclass of torch.optim.Optimizer"),
        ("optimizer", "other_rate", r"groups of lr \[7\], and optimizer.lr is 0.01"),
        ("optimizer", "Keeps", "its state_dict\\(\\) holds objects that no checkpoint takes"),
        ("scheduler", "negative", "gives -1.0 at step 1: a learning rate is a finite number"),
        ("loss", "each", r"gives \[2\] on outputs \[2, 10\] .*: it must give one number"),
        ("loss", "broken", r"IndexError: index 99 .*my_training.py, line 56\)"),
        ("loss", ("smooth loss.kwargs.amount=0.1 analysis.source=probe analysis.fisher_type=exact "
         "analysis.probe.size=10 analysis.probe.mode=eval"), "only a plain CrossEntropyLoss"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_nothing_is_written(
    condexp: Command, tmp_path: Path, group: str, given: str, message: str
) -> None:
    target, *more = given.split()
    code, out, err = condexp(
        f"{group}=import", f"{group}.target=my_training:{target}", *more, *SMALL
    )
    assert (code, out) == (2, "")
    assert err.count("condexp: ") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "outputs").exists()


def test_a_cross_entropy_of_values_is_refused(condexp: Command) -> None:
    code, _, err = condexp("model=linear", "dataset=gaussian", "loss=cross_entropy")
    assert code == 2
    assert "loss=cross_entropy is of classes" in err
