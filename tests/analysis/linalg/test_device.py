"""Solving on a device with fast float64, with the CPU in its place, so that no GPU is needed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.linalg import device, eigen
from condexp.analysis.linalg.device import (
    _in_one_transfer,
    fetched,
    has_fast_float64,
    solve_stacked,
)
from condexp.analysis.linalg.eigen import descending_eigenvalues, solve_all
from condexp.analysis.statistics import moment

CPU = torch.device("cpu")


def matrices(*sides: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, n, 2 * n, generator=generator, dtype=torch.float64) for n in sides]
    return [each @ each.mT for each in rows]


@pytest.mark.parametrize(
    ("capability", "fast"),
    [((8, 0), True), ((9, 0), True), ((10, 0), True), ((8, 6), False), ((8, 9), False)],
)
def test_devices_of_data_centres_have_fast_float64(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(device, "_capability", lambda _index: capability)
    assert has_fast_float64(torch.device("cuda", 0)) is fast
    assert not has_fast_float64(CPU)
    assert not has_fast_float64(torch.device("mps"))


def test_one_call_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, solve = [], torch.linalg.eigvalsh

    def counted(stack: Tensor, **given: Any) -> Tensor:
        calls.append(tuple(stack.shape))
        values: Tensor = solve(stack, **given)
        return values

    given = matrices(5, 8, 5, 8, 8)
    monkeypatch.setattr(torch.linalg, "eigvalsh", counted)
    found = solve_stacked(given)
    assert calls == [(2, 5, 5), (3, 8, 8)]
    monkeypatch.undo()
    for values, matrix in zip(found, given, strict=True):
        assert values is not None
        torch.testing.assert_close(values, descending_eigenvalues(matrix))


def test_wrong_values_and_failures_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given, solve = matrices(5, 5, 9), torch.linalg.eigvalsh

    def lying(stack: Tensor, **options: Any) -> Tensor:
        if stack.shape[-1] == 9:
            raise RuntimeError("out of memory")
        values: Tensor = solve(stack, **options)
        values[0] += 1e-3  # in silence, of the first matrix alone
        return values

    monkeypatch.setattr(torch.linalg, "eigvalsh", lying)
    first, second, third = solve_stacked(given)
    assert first is None
    assert second is not None
    assert third is None
    monkeypatch.setattr(eigen, "has_fast_float64", lambda _device: True)
    monkeypatch.setattr(eigen, "_torch_eigenvalues", eigen._numpy_eigenvalues)  # which lies not
    for values, matrix in zip(solve_all(given, given), given, strict=True):
        monkeypatch.undo()
        torch.testing.assert_close(values, descending_eigenvalues(matrix))


def test_an_analysis_has_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 7), nn.Linear(7, 4)
    )
    batch = torch.randn(30, 3, 6, 6), torch.arange(30) % 4
    loss = nn.CrossEntropyLoss()
    expected: Any = condexp.analyze(model, loss, *batch, precision="float64")
    for module in (eigen, moment):
        monkeypatch.setattr(module, "has_fast_float64", lambda _device: True)
    found: Any = condexp.analyze(model, loss, *batch)
    for name in expected:
        for matrix in ("input", "grad_output"):
            one, other = getattr(found[name], matrix), getattr(expected[name], matrix)
            assert one.dtype == torch.float64  # at once
            # Two orders of the same float64 sums.
            torch.testing.assert_close(one.eigenvalues, other.eigenvalues, rtol=1e-9, atol=1e-12)


def test_what_is_fetched_is_what_was_there() -> None:
    given = [torch.ones(2, 3), torch.zeros(4, dtype=torch.float64)]
    assert all(a is b for a, b in zip(fetched(given), given, strict=True))
    some = [
        torch.arange(6.0).view(2, 3).mT,
        torch.ones(()),
        torch.zeros(2, 0),
        torch.full((2,), 7.0),
    ]
    for one, other in zip(_in_one_transfer(some), some, strict=True):
        assert torch.equal(one, other)
