"""Intervals of κ_p hold: planted spectra, whose κ is known, under every precision."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from condexp.analysis.layers.calls import PassMode
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.ratios import kappa_index
from condexp.analysis.linalg.rows.dense import DenseRows
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.moment import AdaptiveMoment, SolveQueue

FRACTIONS = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95, 1.0)
SHAPES: dict[str, Callable[[int, float], Tensor]] = {
    "flat": lambda r, last: torch.cat([torch.ones(r - 1), torch.tensor([last])]),
    "geometric": lambda r, last: last ** torch.linspace(0, 1, r),
    "clustered": lambda r, last: last ** (torch.arange(r) * 4 // r / 3.0),
    "one large": lambda r, last: torch.cat([torch.ones(1), torch.full((r - 1,), last)]),
}


@dataclass(frozen=True)
class Case:
    """Rows with a planted spectrum."""

    num_rows: int
    num_features: int
    shape: str
    smallest: float
    offset: float = 0.0

    def rows(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        rank = min(self.num_rows, self.num_features)

        def orthogonal(side: int) -> Tensor:
            drawn = torch.randn(side, rank, dtype=torch.float64, generator=generator)
            basis: Tensor = torch.linalg.qr(drawn)[0]
            return basis

        sizes = SHAPES[self.shape](rank, self.smallest).double().sqrt()
        left, right = orthogonal(self.num_rows), orthogonal(self.num_features)
        return math.sqrt(self.num_rows) * (left * sizes) @ right.mT + self.offset


def eigenvalues(rows: Tensor, num_features: int) -> Tensor:
    """Of the very rows, in float64 by their singular values, whose small ones keep digits."""
    singular = torch.linalg.svdvals(rows.double()) / math.sqrt(len(rows))
    return torch.cat([singular.square(), torch.zeros(num_features - len(singular))])


def kappa(values: Tensor, p: float) -> float:
    last = float(values[kappa_index(p, len(values)) - 1])
    return float(values[0]) / last if last > 0 else math.inf


def measured(rows: Tensor, precision: str, scale: Scale, row_dtype: torch.dtype) -> Spectrum:
    options = AnalysisOptions(("input",), precision=precision, kappa_p=FRACTIONS)  # type: ignore[arg-type]
    moment = AdaptiveMoment(scale, options, PassMode.USER_PASSES, SolveQueue())
    moment.add(DenseRows(rows[None]), len(rows), row_dtype)
    return moment.spectrum()


SIZES = ((200, 24), (33, 32), (32, 32), (24, 60), (700, 16))


def cases() -> Iterator[Case]:
    for size in SIZES:
        for shape in SHAPES:
            for exponent in (2, 4, 6, 7, 8, 10, 13, 16):
                yield Case(*size, shape, 10.0**-exponent)
    for size in SIZES:
        yield Case(*size, "geometric", 1e-5, offset=1000.0)


@pytest.mark.parametrize("row_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "float64", "auto"])
def test_no_kappa_is_outside_of_its_interval(precision: str, row_dtype: torch.dtype) -> None:
    wide = []
    for number, case in enumerate(cases()):
        rows = case.rows(number).to(row_dtype)
        rows = rows if row_dtype == torch.float64 else rows.float()  # bfloat16's values
        truth = eigenvalues(rows, case.num_features)
        # Singular values of rows with cond 10⁸ err by eps·σ_1, which the oracle can't tell from 0.
        error = 64 * torch.finfo(torch.float64).eps ** 2 * float(truth[0])
        scale = Scale.MEAN if number % 2 else Scale.SUM
        spectrum = measured(rows, precision, scale, row_dtype)
        low, high = spectrum.bounds
        assert bool((low[0] <= truth + error).all()), case
        assert bool((truth <= high[0] + error).all()), case
        for p in FRACTIONS:
            expected, (least, most) = kappa(truth, p), spectrum.kappa_interval(p)
            if expected < 1e13:
                assert least <= expected * (1 + 1e-9), (case, p)
                assert expected <= most * (1 + 1e-9), (case, p)
                assert least <= spectrum.kappa(p) <= most, (case, p)
            if precision == "auto" and row_dtype != torch.bfloat16 and expected < 1e9:
                wide.append(most / least - 1)
    if wide:
        assert sorted(wide)[len(wide) // 2] < 0.01
        assert sorted(wide)[int(0.99 * len(wide))] < 0.01


def test_products_have_the_interval_of_all_their_factors_eigenvalues() -> None:
    """A factor's eigenvalue under its floor times a large one outranks counted products."""
    inside = 0
    for number, (shape, smallest) in enumerate(
        (shape, 10.0**-e) for shape in SHAPES for e in (3, 6, 9, 12, 14)
    ):
        one, other = Case(80, 9, shape, smallest), Case(60, 7, "geometric", 1e-6)
        rows = one.rows(number).float(), other.rows(100 + number).float()
        truths = [eigenvalues(r, r.shape[1]) for r in rows]
        products = torch.outer(*truths).flatten().sort(descending=True).values
        for precision in ("float32", "float64"):
            a, b = (measured(r, precision, Scale.MEAN, torch.float32) for r in rows)
            kfac = KroneckerSpectrum(a, b)
            for p in FRACTIONS:
                expected, (least, most) = kappa(products, p), kfac.kappa_interval(p)
                assert least <= expected * (1 + 1e-9), (shape, smallest, p)
                assert expected <= most * (1 + 1e-9), (shape, smallest, p)
                assert least <= kfac.kappa(p) <= most
                inside += math.isfinite(most)
    assert inside > 150


def test_only_what_is_zero_exactly_has_an_infinite_kappa() -> None:
    rows = Case(50, 6, "geometric", 1e-3).rows(0)
    dead = torch.cat([rows, torch.zeros(50, 1)], 1)
    few = Case(5, 8, "geometric", 1e-3).rows(1)
    combined = torch.cat([rows, rows[:, :1] + rows[:, 1:2]], 1)
    for given, p, is_exact in ((dead, 1.0, True), (few, 1.0, True), (combined, 1.0, False)):
        spectrum = measured(given, "float64", Scale.MEAN, torch.float64)
        assert (spectrum.kappa(p) == math.inf) == is_exact
        assert spectrum.kappa_interval(p)[1] == math.inf
        assert spectrum.kappa_interval(p)[0] > 1e10
    centered = SecondMoment(Scale.MEAN, center=True)
    centered.add(few[None], 5, torch.float64)
    assert centered.spectrum().kappa(5 / 8) == math.inf
    assert centered.spectrum().kappa(4 / 8) < 1e4
