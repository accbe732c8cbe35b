"""The largest eigenvalue, followed through matrices that change, against all eigenvalues."""

import math

import pytest
import torch
from torch import Tensor

from condexp.analysis.linalg.tracking import (
    MOST_PRODUCTS,
    NUM_VECTORS,
    TOLERANCES,
    Tracked,
    track_largest,
)
from tests import cases


def track(matrix: Tensor, start: Tensor | None = None, seed: int = 0) -> Tracked:
    generator = torch.Generator().manual_seed(seed)
    return track_largest(lambda columns: matrix @ columns, len(matrix), start, generator=generator)


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    basis, _ = torch.linalg.qr(cases.normal(len(values), len(values), seed=seed))
    matrix: Tensor = basis * values @ basis.T
    return (matrix + matrix.T) / 2


def check(found: Tracked, matrix: Tensor) -> None:
    """A lower bound of the largest, and within the residual of an eigenvalue: rounding aside."""
    values = torch.linalg.eigvalsh(matrix)
    room = 1e-12 * float(values.abs().max())
    assert found.value <= float(values[-1]) + room
    assert float((values - found.value).abs().min()) <= found.residual + room
    assert found.vectors.shape == (len(matrix), min(NUM_VECTORS, len(matrix)))


@pytest.mark.parametrize("seed", range(5))
def test_from_nothing(seed: int) -> None:
    values = torch.cat([torch.tensor([9.0, 5.0, -3.0]).double(), 0.1 * cases.normal(97, seed=seed)])
    matrix = with_spectrum(values, seed)
    found = track(matrix, seed=seed)
    check(found, matrix)
    assert found.value == pytest.approx(9.0, rel=1e-2)
    assert found.residual <= TOLERANCES[0] * 9.0
    assert found.num_products < 20


def test_what_changes_little_takes_two_products() -> None:
    first = with_spectrum(torch.linspace(-1, 1, 200).double() ** 3 * 4, seed=1)
    change = with_spectrum(cases.normal(200), seed=2)
    found, made = track(first), []
    for step in range(1, 30):
        matrix = first + 1e-3 * step * change
        found = track(matrix, found.vectors)
        check(found, matrix)
        largest = float(torch.linalg.eigvalsh(matrix)[-1])
        assert largest - found.value <= found.residual
        made.append(found.num_products)
    assert sum(made) / len(made) < 3


def test_an_eigenvalue_that_overtakes_is_seen() -> None:
    """Eigenvectors stay as they are, so that the first one's residual stays 0 all the time."""
    basis, _ = torch.linalg.qr(cases.normal(60, 60))
    rest = torch.linspace(-1, 1, 58).double()
    found = None
    for rising in torch.linspace(2.0, 8.0, 40).tolist():
        values = torch.cat([torch.tensor([5.0, rising]).double(), rest])
        matrix = basis * values @ basis.T
        found = track(matrix, None if found is None else found.vectors)
        assert found.value == pytest.approx(max(5.0, rising), rel=1e-2)
        check(found, matrix)


def test_a_crowded_end_takes_more_than_the_basis_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cut, and the residual falls on."""
    monkeypatch.setattr("condexp.analysis.linalg.tracking.WIDTH", 6)
    matrix = with_spectrum(torch.linspace(-1, 1, 900).double())
    found = track(matrix)
    assert 8 < found.num_products <= MOST_PRODUCTS
    check(found, matrix)
    assert found.residual <= TOLERANCES[0]


@pytest.mark.parametrize("num", [1, 2, 3])
def test_of_few_dimensions(num: int) -> None:
    matrix = with_spectrum(cases.normal(num))
    found = track(matrix)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=0.05)
    check(track(matrix, found.vectors), matrix)


def test_zero_and_nan() -> None:
    assert track(torch.zeros(9, 9).double()).value == 0.0
    found = track(torch.full((9, 9), math.nan).double())
    assert math.isnan(found.value)
    assert math.isnan(found.residual)
