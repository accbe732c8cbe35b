import math

import numpy as np
import pytest
import torch

from condexp.analysis.linalg.ratios import p_limit
from condexp.results.tables.numbers import (
    Mark,
    format_number,
    kappa_mark,
    measure_mark,
    value_marks,
)

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("num_signals", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 3, 5, 12])
@pytest.mark.parametrize(("d_in", "d_out", "groups"), [(5, 4, 1), (2, 6, 1), (3, 6, 3), (4, 4, 2)])
def test_p_limit_is_the_rank_of_random_matrices(
    d_in: int, d_out: int, groups: int, num_rows: int, num_signals: int
) -> None:
    # Random rows have the largest rank there can be, with probability 1.
    generator = torch.Generator().manual_seed(num_rows)

    def rows(num: int, side: int) -> torch.Tensor:
        return torch.randn(groups, num, side, generator=generator, dtype=torch.float64)

    num_gradients = num_rows * num_signals
    a, g = rows(num_rows, d_in), rows(num_gradients, d_out // groups)
    factors = a.mT @ a, g.mT @ g
    matrices = {
        "input": factors[0],
        "grad_output": factors[1],
        "kfac": torch.stack([torch.kron(*blocks) for blocks in zip(*factors, strict=True)]),
    }
    for name, blocks in matrices.items():
        rank, length = torch.linalg.matrix_rank(blocks).sum(), blocks.shape[0] * blocks.shape[1]
        limit = p_limit(name, d_in, d_out, groups, num_rows, num_gradients)
        assert limit == pytest.approx(float(rank) / length)
    gradient = g[:, :num_rows].mT @ a  # of the data's loss, whatever is drawn beside it
    rank, length = torch.linalg.matrix_rank(gradient).sum(), groups * min(gradient.shape[1:])
    limit = p_limit("weight_grad", d_in, d_out, groups, num_rows, num_gradients)
    assert limit == pytest.approx(float(rank) / length)
    for name in ("weight", "fisher"):
        assert p_limit(name, d_in, d_out, groups, num_rows, num_gradients) == 1


@pytest.mark.parametrize(
    ("value", "status", "p", "limit", "mark"),
    [
        (12.0, "ok", 0.5, 0.5, Mark.NONE),
        (INF, "ok", 0.5, 0.5, Mark.INFINITE),  # 32 rows suffice for κ_0.5 of 64 units
        (INF, "ok", 0.5, 0.49, Mark.ROWS),
        (INF, "ok", 1.0, NAN, Mark.INFINITE),  # the number of rows is not known
        (NAN, "ok", 1.0, 0.1, Mark.MISSING),
        (NAN, "zero", 1.0, 0.1, Mark.ZERO),
        (NAN, "unreliable", 1.0, 1.0, Mark.UNRELIABLE),
        (NAN, "nonfinite", 1.0, 1.0, Mark.NONFINITE),
    ],
)
def test_an_infinite_condition_number_says_why(
    value: float, status: str, p: float, limit: float, mark: Mark
) -> None:
    assert kappa_mark(value, status, p, limit) is mark


def test_a_finite_value_without_an_upper_end_is_a_bound() -> None:
    assert kappa_mark(4e6, "ok", 0.5, 1.0, INF) is Mark.AT_LEAST
    assert kappa_mark(4e6, "ok", 0.5, 1.0, 4.1e6) is Mark.NONE
    # Exactly infinite, for whatever reason, is no bound; nor is what has no number.
    assert kappa_mark(INF, "ok", 0.5, 1.0, INF) is Mark.INFINITE
    assert kappa_mark(INF, "ok", 0.5, 0.1, INF) is Mark.ROWS
    assert kappa_mark(NAN, "incomplete", 0.5, 1.0, NAN) is Mark.INCOMPLETE


def test_the_share_that_exactly_fits_is_not_past_the_limit() -> None:
    # 7 of 10 rows: 0.7 · 10 is 7.000000000000001 in some spellings, k(p) is 7 all the same.
    for rows, d in [(7, 10), (9, 10), (1, 3), (29, 100)]:
        limit = p_limit("input", d_in=d, d_out=1, groups=1, num_rows=rows, num_gradients=rows)
        assert kappa_mark(INF, "ok", rows / d, limit) is Mark.INFINITE


def test_measures_that_are_no_numbers() -> None:
    assert measure_mark(0.0, "zero") is Mark.ZERO  # λ_max of a dead layer is not just a small one
    assert measure_mark(INF) is Mark.INFINITE
    assert measure_mark(NAN) is Mark.MISSING


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01, "0.01"),
        (0.00999, "9.99e-3"),
        (123.456, "123"),
        (999.96, "1000"),
        (99999.9, "1e5"),
        (12345.6, "12346"),
        (123456.0, "1.23e5"),
        (-2.5e-9, "-2.5e-9"),
        (INF, "∞"),
        (-INF, "-∞"),
        (NAN, "–"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
    assert len(format_number(value)) <= 8


def test_marks_of_an_array_are_marks() -> None:
    marks = value_marks(
        np.array([[1.0, INF], [NAN, NAN]]), np.array([["ok", "ok"], ["ok", "zero"]])
    )
    assert marks.tolist() == [[Mark.NONE, Mark.INFINITE], [Mark.MISSING, Mark.ZERO]]
    assert all(type(mark) is Mark for mark in marks.ravel())
