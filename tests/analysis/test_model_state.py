"""Every step of restoring a model is independent of the others."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.model_state import preserved_state
from tests import cases


class BoomError(Exception):
    """Raised where a test wants a failure."""


class Stubborn(nn.Module):
    """Refuses that its mode is set, once it is told to."""

    stubborn = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and self.stubborn:
            raise BoomError("my mode stays")
        super().__setattr__(name, value)


def network() -> nn.Sequential:
    model = nn.Sequential(Stubborn(), nn.Linear(4, 3), nn.BatchNorm1d(3), Stubborn())
    model[2].register_buffer("cached", torch.arange(6.0), persistent=False)
    model[2].register_buffer("empty", None)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    return model


State = dict[str, Any]


def state_of(model: nn.Module) -> State:
    buffers = {name: (id(b), b.stride(), b.dtype, b.tolist()) for name, b in model.named_buffers()}
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "buffers": buffers,
        "registered": {name: list(module._buffers) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "stored": list(model.state_dict()),
        "gradients": {n: (id(p.grad), str(p.grad)) for n, p in model.named_parameters()},
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
    }


def draw_and_switch(model: nn.Module) -> None:
    """What every test does besides, to find it restored."""
    model.eval()
    for draw in (lambda: torch.rand(1), random.random, np.random.rand):
        draw()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def norm_of(model: nn.Module) -> nn.BatchNorm1d:
    norm = model.get_submodule("2")
    assert isinstance(norm, nn.BatchNorm1d)
    return norm


def cached_of(model: nn.Module) -> Tensor:
    return model.get_buffer("2.cached")


def set_data(model: nn.Module, value: Tensor) -> None:
    cached_of(model).data = value


def shadow(model: nn.Module) -> None:
    del norm_of(model).cached
    vars(norm_of(model))["cached"] = 3


def become_parameter(model: nn.Module) -> None:
    del norm_of(model).cached
    norm_of(model).cached = nn.Parameter(torch.zeros(2))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "values": lambda model: cached_of(model).fill_(torch.nan),
    "smaller": lambda model: cached_of(model).resize_(2).fill_(7),
    "larger": lambda model: cached_of(model).resize_(600).fill_(7),
    "transposed": lambda model: cached_of(model).resize_(2, 3).t_(),
    "other shape": lambda model: set_data(model, torch.zeros(2, 2)),
    "other memory": lambda model: set_data(model, torch.arange(6.0)),
    "other dtype": lambda model: set_data(model, torch.zeros(6, dtype=torch.float64)),
    "replaced": lambda model: setattr(norm_of(model), "cached", torch.zeros(9)),
    "none": lambda model: setattr(norm_of(model), "cached", None),
    "no longer none": lambda model: setattr(norm_of(model), "empty", torch.zeros(1)),
    "deleted": lambda model: delattr(norm_of(model), "cached"),
    "shadowed": shadow,
    "become a parameter": become_parameter,
    "registered": lambda model: model.register_buffer("another", torch.zeros(1)),
    "transient": lambda model: model.register_buffer("more", torch.ones(1), persistent=False),
    "persistent": lambda model: norm_of(model).register_buffer("cached", torch.ones(3)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("raises", [False, True])
def test_whatever_became_of_a_buffer_all_is_restored(change: str, raises: bool) -> None:
    model = network()
    before = state_of(model)
    try:
        with preserved_state(model):
            draw_and_switch(model)
            CHANGES[change](model)
            if raises:
                raise BoomError
    except BoomError:
        assert raises
    assert state_of(model) == before


def test_buffers_that_share_memory_share_it_again() -> None:
    model = network()
    model.register_buffer("part", cached_of(model)[2:4])
    with preserved_state(model):
        set_data(model, torch.zeros(1))
    cached_of(model)[2] = 9
    assert model.get_buffer("part").tolist() == [9, 3]


def test_steps_that_fail_keep_no_other_from_running() -> None:
    """A mode, which comes first, and a gradient, whose weight has another shape now."""
    model = network()
    before = state_of(model)

    def change() -> None:
        draw_and_switch(model)
        model.get_parameter("1.bias").data = torch.zeros(2)
        for name in ("0", "3"):
            vars(model.get_submodule(name))["stubborn"] = True

    with pytest.raises(BoomError, match="my mode stays") as raised, preserved_state(model):
        change()
    for name in ("0", "3"):
        del vars(model.get_submodule(name))["stubborn"]
    notes = raised.value.__notes__
    assert [note.split(" could not")[0] for note in notes] == [
        "mode of module '0'",
        "mode of module '3'",
        "gradient of '1.bias'",
    ]
    after = state_of(model)
    for lost in (("modes", "0"), ("modes", "3"), ("gradients", "1.bias")):
        for state in (before, after):
            del state[lost[0]][lost[1]]
    assert after == before


def test_the_exception_under_way_stays_and_is_told_what_was_not_restored() -> None:
    model = network()

    def fail() -> None:
        vars(model.get_submodule("3"))["stubborn"] = True
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised, preserved_state(model):
        fail()
    (note,) = raised.value.__notes__
    assert note == "mode of module '3' could not be restored: BoomError: my mode stays"


def test_an_interruption_while_restoring_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = state_of(model)

    def interrupt(_state: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "set_rng_state", interrupt)

    def fail() -> None:
        draw_and_switch(model)
        raise BoomError

    with pytest.raises(KeyboardInterrupt), preserved_state(model):
        fail()
    after = state_of(model)
    assert after.pop("torch") != before.pop("torch")
    assert after == before


class Cache(nn.Module):
    """A buffer that takes the shape of the last batch, as caches of attention do."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 1))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last.data = x.detach() * 2
        out: Tensor = self.fc(x)
        return out


def test_analysing_a_model_with_a_cache_keeps_the_gradients() -> None:
    model, inputs, targets = Cache(), cases.normal(6, 4).float(), cases.labels(6, 3)
    loss_fn = nn.CrossEntropyLoss()
    loss_fn(model(inputs), targets).backward()
    before = state_of(model)
    condexp.analyze(model, loss_fn, inputs[:2], targets[:2])
    assert state_of(model) == before
