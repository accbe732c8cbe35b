"""The axis of training steps: linear or logarithmic, as the snapshots are spaced."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from condexp.results.figures.ticks import Spaced, step_locator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StepAxis:
    """How steps are laid out from left to right.

    Attributes:
        logarithmic: Whether the axis is linear in log(1 + step), which has a place for step 0.
        steps: Steps of the snapshots.
        edges: Borders of the cells of a heat map, one more than there are snapshots.
        last: The last step of the run so far.
    """

    logarithmic: bool
    steps: Array
    edges: Array
    last: float

    @classmethod
    def of(cls, steps: Array, last: float) -> "StepAxis":
        """Choose the axis on which the snapshots are spaced more evenly.

        Args:
            steps: Steps of the snapshots, increasing; may be empty.
            last: The last step of the run so far.

        Returns:
            The axis; each cell's borders are half-way to its neighbours, and the outer ones near.

        >>> StepAxis.of(np.array([0.0, 1.0, 3.0, 10.0, 31.0, 99.0]), 99.0).logarithmic
        True
        """
        logarithmic = _unevenness(np.log1p(steps)) < 0.9 * _unevenness(steps)
        places = np.log1p(steps) if logarithmic else steps
        if len(steps) > 1:
            middles = (places[1:] + places[:-1]) / 2
            # No cell reaches far beyond the first and the last snapshot, where there is nothing.
            most = max(0.35 if logarithmic else 0.5, (places[-1] - places[0]) / 20)
            before = min(middles[0] - places[0], most)
            after = min(places[-1] - middles[-1], most)
            edges = np.concatenate([[places[0] - before], middles, [places[-1] + after]])
        else:
            # One snapshot alone still gets a cell that can be seen.
            half = max(0.5, last / 50)
            edges = np.concatenate([steps - half, steps + half])
        return cls(logarithmic, steps, np.expm1(edges) if logarithmic else edges, last)

    @classmethod
    def of_curves(cls, steps: "pd.Series[float]") -> "StepAxis":
        """Choose the axis for curves whose points lie at these steps.

        Args:
            steps: Steps of all curves, in any order, any number of times.

        Returns:
            The axis, up to the last of them.
        """
        every = np.unique(steps.to_numpy(np.float64))
        return cls.of(every.astype(np.float64), float(every.max(initial=0.0)))

    def apply(self, axes: Axes) -> None:
        """Set scale, limits and ticks of a panel.

        Args:
            axes: The panel.
        """
        # Half a cell lies before step 0, and a run that goes on is wider than its snapshots.
        low, high = min([0.0, *self.edges[:1]]), max([self.last, 1.0, *self.edges[-1:]])
        if self.logarithmic:
            axes.set_xscale("function", functions=(np.log1p, np.expm1))
            decades = 10.0 ** np.arange(0, np.floor(np.log10(high)) + 1)
            ticks = [np.outer(decades, (1, 3)).ravel()] if high < 1000 else []
            ticks += [decades[place::every] for every in (1, 2, 3, 4) for place in range(every)]
            locator = Spaced([FixedLocator([0.0, *own]) for own in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            locator = step_locator(5)
        axes.xaxis.set_major_locator(locator)
        axes.set_xlim(low, high)


def _unevenness(places: Array) -> float:
    # Spread of the gaps relative to their mean; 0 for even spacing.
    gaps = np.diff(places)
    return float(np.std(gaps) / np.mean(gaps)) if len(gaps) else 0.0
