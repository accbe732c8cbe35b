"""When `precision: auto` takes the products again in float64 (docs/theory.md §4)."""

import math

import pytest
import torch

from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.statistics.moment import needs_float64

EPS32 = torch.finfo(torch.float32).eps
# The error of a diagonal of side 4 is 16 eps of its largest entry; twice that is 1 % of 3200 eps.
SMALL = 3100 * EPS32
LARGE = 3300 * EPS32


@pytest.mark.parametrize(
    ("values", "kappa_p", "num_rows", "dtype", "expected"),
    [
        ([1.0, 0.5, LARGE, LARGE], (1.0,), 100, torch.float32, False),
        ([1.0, 0.5, LARGE, SMALL], (1.0,), 100, torch.float32, True),
        ([1.0, 0.5, LARGE, SMALL], (0.5, 0.75), 100, torch.float32, False),
        ([1.0, 0.5, LARGE, SMALL], (0.5, 1.0), 100, torch.float32, True),
        ([1.0, 0.5, LARGE, 0.0], (1.0,), 100, torch.float32, False),  # a dead unit
        ([1.0, 0.5, LARGE, EPS32], (1.0,), 4, torch.float32, True),
        ([1.0, 0.5, LARGE, EPS32], (1.0,), 3, torch.float32, False),  # 3 rows: an exact 0
        ([1.0, 0.5, SMALL, 0.0], (0.75, 1.0), 3, torch.float32, True),  # but λ_3 is not
        ([1.0, 0.5, LARGE, SMALL], (1.0,), 100, torch.float64, False),
        ([1.0, 0.5, LARGE, SMALL], (), 100, torch.float32, False),
        ([0.0, 0.0, 0.0, 0.0], (1.0,), 100, torch.float32, False),
        ([1.0, 0.5, LARGE, -SMALL], (0.5,), 100, torch.float32, True),  # unreliable
        ([1.0, 0.5, LARGE, math.nan], (1.0,), 100, torch.float32, False),
    ],
)
def test_auto_asks_for_float64_where_float32_cannot_tell(
    values: list[float],
    kappa_p: tuple[float, ...],
    num_rows: int,
    dtype: torch.dtype,
    expected: bool,
) -> None:
    matrix = torch.diag(torch.tensor(values, dtype=torch.float64))
    assert (
        needs_float64(Spectrum.from_matrix(matrix, dtype=dtype, num_rows=num_rows), kappa_p)
        is expected
    )


def test_auto_counts_rows_for_every_block() -> None:
    # Two blocks of side 3, rank 2 each: λ_4 may be small by chance, λ_5 = λ_6 = 0 by construction.
    matrix = torch.stack([torch.diag(torch.tensor([1.0, last, 0.0])) for last in (0.5, EPS32)])
    spectrum = Spectrum.from_matrix(matrix, dtype=torch.float32, num_rows=2)
    assert needs_float64(spectrum, [4 / 6])
    assert not needs_float64(spectrum, [3 / 6, 5 / 6, 1.0])


def test_auto_leaves_what_the_rows_cannot_tell() -> None:
    # bfloat16's rounding sets the floor, above float32's: products in float64 would not lower it.
    values = torch.tensor([1.0, 0.5, 1e-4, 1e-9], dtype=torch.float64)
    settings = {"dtype": torch.float32, "num_rows": 100, "row_dtype": torch.bfloat16}
    coarse = Spectrum.from_matrix(torch.diag(values), **settings)  # type: ignore[arg-type]
    assert coarse.rank == 2
    assert not needs_float64(coarse, (0.75, 1.0))
    exact = Spectrum.from_matrix(torch.diag(values), **settings | {"row_dtype": torch.float32})  # type: ignore[arg-type]
    assert exact.rank == 3
    assert needs_float64(exact, (1.0,))


def test_a_kronecker_product_reads_every_eigenvalue_of_a_factor() -> None:
    values = torch.tensor([1.0, 0.5, 0.1, SMALL], dtype=torch.float64)
    spectrum = Spectrum.from_matrix(torch.diag(values), dtype=torch.float32, num_rows=100)
    assert not needs_float64(spectrum, (0.5,))
    assert needs_float64(spectrum, (0.5,), whole=True)
    assert not needs_float64(spectrum, (), whole=True)  # nothing is asked
    few = Spectrum.from_matrix(torch.diag(values), dtype=torch.float32, num_rows=3)
    assert not needs_float64(few, (0.5,), whole=True)
