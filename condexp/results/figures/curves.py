"""Curves over training steps with a band over seeds, and the colours that tell them apart."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from condexp.results.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
)

COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY_BLUE, BLACK)
LINES: Sequence[Any] = ("-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)))
BOUND: Any = {"marker": "^", "linestyle": "", "markerfacecolor": "none", "markeredgewidth": 0.7}
BOUND_LABEL = "≥: a lower bound"
FEW = 20  # points that are marked one by one
FEW_DECADES = 10**2.5


def color_of(index: int) -> str:
    """Return the colour of a curve.

    Args:
        index: Its number among the curves of a panel.

    Returns:
        One of seven colours; what comes after them is grey, told apart by its line alone.
    """
    return COLORS[index] if index < len(COLORS) else GREY


def draw_seeds(
    axes: Axes,
    values: pd.DataFrame,
    color: str,
    label: str | None = None,
    *,
    index: int = 0,
    logarithmic: bool = True,
    above: int = 0,
) -> None:
    """Draw the mean over seeds as a line, and their range as a band around it.

    A step that some seeds lack is drawn of those that have it: a run that diverged ends early.

    Args:
        axes: The panel.
        values: Rows are steps, ascending; a column a seed. What is not finite is left out.
        color: Of line and band.
        label: In the legend; no entry where None.
        index: Number of the line's dashes, 0 for a solid one.
        logarithmic: Whether the mean is geometric; what is not positive is left out then.
        above: How many curves will be drawn over this one: it is wider by so much, and shows
            beside them where they coincide.
    """
    numbers = values.to_numpy(dtype=float)
    valid = np.isfinite(numbers) & ((numbers > 0) | (not logarithmic))
    some = valid.any(axis=1)
    kept = np.where(valid, numbers, np.nan)[some]
    if not len(kept):
        return
    steps = values.index.to_numpy()[some]
    mean = np.exp(np.nanmean(np.log(kept), axis=1)) if logarithmic else np.nanmean(kept, axis=1)
    marker = "o" if len(steps) <= FEW else ""
    line = LINES[index % len(LINES)]
    wider = min(above, 3)
    axes.plot(
        steps,
        mean,
        color=color,
        label=label,
        linestyle=line,
        linewidth=1.2 + 1.1 * wider,
        marker=marker,
        markersize=2 + 1.4 * wider,
    )
    if kept.shape[1] > 1:
        low, high = np.nanmin(kept, axis=1), np.nanmax(kept, axis=1)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def mark_bounds(axes: Axes, values: pd.DataFrame, highs: pd.DataFrame, color: str) -> bool:
    """Mark the numbers that are lower bounds by open triangles.

    Args:
        axes: The panel.
        values: Rows are places on the horizontal axis; a column a seed.
        highs: High ends of the values' intervals, likewise; NaN where they have none.
        color: Of the triangles.

    Returns:
        Whether there was one.
    """
    numbers, ends = values.to_numpy(dtype=float), highs.to_numpy(dtype=float)
    rows, seeds = np.nonzero(np.isfinite(numbers) & np.isposinf(ends))
    places = values.index.to_numpy()[rows]
    axes.plot(places, numbers[rows, seeds], **BOUND, color=color, markersize=3.5)
    return bool(len(rows))


def fan_colors(num: int) -> NDArray[np.float64]:
    """Return the colours of so many eigenvalues, from the largest to the smallest."""
    return mpl.colormaps["viridis"](np.linspace(0.0, 0.95, num))


def draw_fan(axes: Axes, values: pd.DataFrame, *, width: float) -> None:
    """Draw every eigenvalue over training.

    Args:
        axes: The panel, whose axis of values is logarithmic: what is not positive has no place.
        values: Eigenvalues by step and number, the largest first.
        width: Of the lines.
    """
    steps = values.index.to_numpy(float)
    lines = [np.column_stack([steps, line]) for line in values.where(values > 0).to_numpy().T]
    axes.add_collection(LineCollection(lines, colors=fan_colors(len(lines)), linewidths=width))


def scale_logarithmically(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with ticks that suit its range.

    Args:
        axes: The panel, its curves drawn already.
    """
    axes.set_yscale("log")
    label_decades(axes.yaxis)


def label_decades(axis: Axis) -> None:
    """Give a logarithmic axis ticks that suit its range, two labelled ones at least.

    Args:
        axis: The axis, its limits set already.
    """
    low, high = axis.get_view_interval()
    if high >= FEW_DECADES * low:
        axis.set_major_locator(LogLocator(numticks=8))
    else:  # powers of ten alone would be one tick or two
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        inside = [tick for tick in axis.get_major_locator()() if low <= tick <= high]
        if len(inside) < 2:
            axis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
