"""How much of a run a page holds: everything of a small one, of a large one what fits, and said."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEASURE_LETTERS = 4_800_000  # of base64: with plotly.js's two million, a page has less than ten
SPECTRUM_VALUES = 800_000  # eigenvalues, about two letters each
CURVE_POINTS = 2_000
FEW_VALUES = 200_000  # eigenvalues that are kept in six digits
BITS = (20, 10)  # of mantissa: six digits, three digits
LETTERS_EACH = {20: 3.6, 10: 1.9}  # a number packed, about; a plan that cannot fit is not tried


@dataclass(frozen=True)
class MeasurePlan:
    """What is kept of the measures.

    Attributes:
        bits: Of the mantissa of each number.
        intervals: Whether with the ends of the intervals of κ.
        every: Every so many-th snapshot, and the last.
    """

    bits: int
    intervals: bool
    every: int

    @property
    def digits(self) -> int:
        """Significant decimal digits that are right."""
        return int(self.bits * math.log10(2))


def measure_plans() -> Iterator[MeasurePlan]:
    """Yield what can be kept of the measures, the most first."""
    yield MeasurePlan(BITS[0], intervals=True, every=1)
    yield MeasurePlan(BITS[1], intervals=True, every=1)
    every = 1
    while True:
        yield MeasurePlan(BITS[1], intervals=False, every=every)
        every += max(1, every // 2)


def kept_rows(num: int, every: int) -> NDArray[np.int64]:
    """Return the places of every so many-th snapshot, counted from the last, and of the first.

    >>> kept_rows(8, 3)
    array([0, 1, 4, 7])
    """
    return np.unique([*range(num - 1, -1, -every), *range(min(1, num))]).astype(np.int64)


@dataclass(frozen=True)
class SpectrumPlan:
    """What is kept of the eigenvalues.

    Attributes:
        points: Eigenvalues of a spectrum.
        snapshots: Of all layers, so many.
        layers: So many, the worst first; all where None.
    """

    points: int
    snapshots: int
    layers: int | None = None

    def rows(self, num: int) -> NDArray[np.int64]:
        """Return the places of the snapshots kept, of so many: spread evenly, first and last."""
        return spread(num, self.snapshots)

    def indices(self, length: int) -> NDArray[np.int64]:
        """Return the indices of the eigenvalues kept of a spectrum so long.

        They are spread evenly over the logarithm of their number, the first and the last among
        them, half of them, and evenly over the number, so that no part of it is left bare.
        """
        if length <= self.points:
            return np.arange(length)
        half = self.points // 2
        logarithmic = np.round(np.geomspace(1, length, half)).astype(np.int64) - 1
        return np.union1d(logarithmic, spread(length, self.points - half))


def spread(num: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of the places 0, …, num − 1, evenly, both ends among them.

    >>> spread(10, 4)
    array([0, 3, 6, 9])
    """
    return np.unique(np.round(np.linspace(0, num - 1, min(num, most)))).astype(np.int64)


def spectrum_plan(lengths: NDArray[np.int64], num_snapshots: int) -> SpectrumPlan:
    """Choose what is kept of the eigenvalues.

    Args:
        lengths: ``[matrices, layers]`` number of eigenvalues.
        num_snapshots: Snapshots.

    Returns:
        The first plan that fits.
    """

    def size(plan: SpectrumPlan) -> int:
        kept = np.minimum(lengths, plan.points)[:, : plan.layers]
        return int(kept.sum()) * min(num_snapshots, plan.snapshots)

    every = max(1, num_snapshots)
    ladder = [SpectrumPlan(points, every) for points in (10**9, 512, 192)]
    ladder += [SpectrumPlan(points, num) for num in (24, 10, 4) for points in (192, 96, 48)]
    ladder += [SpectrumPlan(32, 4, layers) for layers in (None, 1024, 256, 64, 16, 4)]
    return next((plan for plan in ladder if size(plan) <= SPECTRUM_VALUES), ladder[-1])


def thinned(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Thin a curve: of each stretch the smallest and the largest value, where they lie.

    Args:
        steps: ``[n]``.
        values: ``[n]``; what is not finite is left out.

    Returns:
        At most `CURVE_POINTS` of them.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) <= CURVE_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), CURVE_POINTS // 2)
    extremes: list[Callable[[NDArray[np.float64]], np.intp]] = [np.argmin, np.argmax]
    kept = np.unique([part[pick(values[part])] for part in parts for pick in extremes])
    return steps[kept], values[kept]
