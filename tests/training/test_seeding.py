"""One seed gives one sequence everywhere; streams are independent of it and of each other."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from condexp.errors import InputError
from condexp.training.seeding import (
    deterministic,
    make_generator,
    random_state,
    restore_random_state,
    seed_everything,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_one_seed_for_every_generator() -> None:
    seed_everything(5)
    first = draw()
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


@pytest.mark.parametrize("gauss", [False, True])
def test_every_generator_goes_on_from_a_state(gauss: bool) -> None:
    seed_everything(5)
    draw()
    if gauss:  # of these two are drawn, and one is kept
        random.gauss(0, 1)
        np.random.randn()
    state = random_state()
    expected = random.gauss(0, 1), float(np.random.randn()), *draw()
    seed_everything(6)
    draw()
    restore_random_state(state)
    assert (random.gauss(0, 1), float(np.random.randn()), *draw()) == expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(InputError, match=f"seed is {seed}: it must lie between 0 and 4294967295"):
        seed_everything(seed)


def test_streams_differ_and_repeat() -> None:
    streams: list[tuple[int | str, ...]] = [(), ("a",), ("b",), ("a", 1), ("a", 2), (1,), ("1",)]
    numbers = [torch.rand(4, generator=make_generator(3, *stream)) for stream in streams]
    again = [torch.rand(4, generator=make_generator(3, *stream)) for stream in streams]
    assert torch.equal(torch.stack(numbers), torch.stack(again))
    assert len({tuple(values.tolist()) for values in numbers}) == len(streams)


def test_a_stream_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    torch.rand(4, generator=make_generator(0, "probe"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def _torch_defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    deterministic(False)


@pytest.mark.usefixtures("_torch_defaults")
def test_deterministic_mode() -> None:
    deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.backends.cudnn.deterministic
    deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
