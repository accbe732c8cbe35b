"""Ticks whose labels have room beside each other, however small the panel."""

import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, MaxNLocator
from numpy.typing import NDArray

from condexp.results.figures.style import TICK_POINTS

LETTER, GAP = 0.62, 0.7  # of a label's height: the width of a digit, and what is left between two
MATHTEXT = re.compile(r"\\mathdefault|[${}^\\]")  # what of a label takes no room
LINE = 1.3  # from one label to the next above it


class Spaced(Locator):
    """The first of several locators whose labels do not touch.

    What fits is known when the figure is laid out, so it is asked then.

    Args:
        choices: The locators, the one of most ticks first.
    """

    def __init__(self, choices: Sequence[Locator]) -> None:
        self._choices = tuple(choices)

    def set_axis(self, axis: Any) -> None:
        """Take the axis whose ticks are wanted.

        Args:
            axis: The axis.
        """
        super().set_axis(axis)
        for choice in self._choices:
            choice.set_axis(axis)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks of the first choice, whatever room there is.

        Args:
            vmin: The lower end of the axis.
            vmax: Its upper end.

        Returns:
            Their places.
        """
        return self._choices[0].tick_values(vmin, vmax)

    def __call__(self) -> Sequence[float]:
        """Return the ticks: two at least where any choice has two.

        Returns:
            Their places.
        """
        axis = cast("Axis", self.axis)
        low, high = sorted(axis.get_view_interval())
        found: Sequence[float] = []
        for choice in self._choices:
            every = np.asarray(choice(), dtype=float)
            ticks = every[(every >= low) & (every <= high)]
            if len(ticks) >= 2 or not found:
                found = ticks.tolist()
            if len(ticks) >= 2 and _have_room(axis, ticks):
                return found
        return found if len(found) < 3 else [found[0], found[-1]]


def step_locator(most: int) -> Spaced:
    """Return round whole numbers as ticks, as many as there is room for.

    Args:
        most: Intervals between them, at most.

    Returns:
        The locator.
    """
    return Spaced([
        MaxNLocator(num, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        for num in range(most, 0, -1)
    ])


def _have_room(axis: Axis, ticks: NDArray[np.float64]) -> bool:
    """Return whether no two labels touch."""
    transform, box = axis.get_transform(), axis.axes.bbox
    low, high = transform.transform(np.array(axis.get_view_interval(), dtype=float))
    vertical = axis is axis.axes.yaxis
    pixels = box.height if vertical else box.width
    points = pixels * 72 / cast("Figure", axis.get_figure(root=True)).dpi
    gaps = np.abs(np.diff(transform.transform(ticks))) * points / abs(high - low)
    if vertical:
        return bool((gaps >= LINE * TICK_POINTS).all())
    labels = axis.get_major_formatter().format_ticks(ticks.tolist())
    widths = np.array([len(MATHTEXT.sub("", label)) * LETTER for label in labels])
    return bool((gaps >= ((widths[1:] + widths[:-1]) / 2 + GAP) * TICK_POINTS).all())
