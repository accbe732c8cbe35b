"""Curves over training steps with a band over seeds, and the colours that tell them apart."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
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
    Size,
)
from condexp.results.figures.ticks import Spaced
from condexp.results.layer_names import short_names

COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY_BLUE, BLACK)
LINES: Sequence[Any] = ("-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = "osD^vP*"
BOUND: Any = {"marker": "^", "linestyle": "", "markerfacecolor": "none", "markeredgewidth": 0.7}
BOUND_LABEL = "≥: a lower bound"
FEW = 20  # points that are marked one by one
BAND_ALPHA = 0.2
LABEL_INCHES = 0.4  # of ticks and label below a panel
FEW_DECADES = 10**2.5
MOST_NAMES = {Size.TEXT: 30, Size.COLUMN: 25}  # layers that there is room to name


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
    above: float = 0,
) -> None:
    """Draw the mean over seeds as a line, and their range as a band around it.

    A step that some seeds lack is drawn of those that have it: a run that diverged ends early. A
    step that none has, such as one of infinite κ alone, breaks the line.

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
    if not some.any():
        return
    first, last = np.flatnonzero(some)[[0, -1]]
    span = slice(first, last + 1)
    kept, there = np.where(valid, numbers, np.nan)[span], some[span]
    steps, mean = values.index.to_numpy()[span], np.full(len(kept), np.nan)
    known = np.log(kept[there]) if logarithmic else kept[there]
    mean[there] = np.exp(np.nanmean(known, axis=1)) if logarithmic else np.nanmean(known, axis=1)
    line = LINES[index % len(LINES)]
    wider = min(above, 3)
    axes.plot(
        steps,
        mean,
        color=color,
        label=label,
        linestyle=line,
        linewidth=1.2 + 1.1 * wider,
        marker="o",
        markevery=np.flatnonzero(there if there.sum() <= FEW else _alone(there)).tolist(),
        markersize=2 + 1.4 * wider,
    )
    if kept.shape[1] > 1:
        low, high = np.fmin.reduce(kept, axis=1), np.fmax.reduce(kept, axis=1)
        axes.fill_between(steps, low, high, color=color, alpha=BAND_ALPHA, linewidth=0)
        lone = _alone(there)  # a band of one point has no width
        axes.vlines(steps[lone], low[lone], high[lone], color, alpha=BAND_ALPHA, linewidth=4)


def _alone(there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which points have no neighbour, so that no line leads to them."""
    padded = np.concatenate([[False], there, [False]])
    alone: NDArray[np.bool_] = there & ~padded[:-2] & ~padded[2:]
    return alone


def band_handles(seeds: "pd.Series[int]") -> list[Patch]:
    """Explain the bands of `draw_seeds` in a legend.

    Args:
        seeds: The seeds of all that was drawn.

    Returns:
        An entry; none where there is one seed, and so no band.
    """
    if seeds.nunique() < 2:
        return []
    return [Patch(facecolor=GREY, alpha=2 * BAND_ALPHA, label="range over seeds")]


def legend_below(axes: Axes, **options: Any) -> None:
    """Put a panel's legend below it and its label, where it covers no curve.

    Args:
        axes: The panel, in a figure of constrained layout, which makes the room.
        **options: What ``Axes.legend`` takes.
    """
    down = ScaledTranslation(0, -LABEL_INCHES, axes.figure.dpi_scale_trans)
    where = {"bbox_to_anchor": (0.5, 0), "bbox_transform": axes.transAxes + down}
    axes.legend(loc="upper center", borderaxespad=0, **where, **options)


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
    choices: list[Locator] = [LogLocator(numticks=num) for num in (8, 6, 5, 4, 3)]
    if high < FEW_DECADES * low:  # powers of ten alone would be one tick or two
        parts: list[Locator] = [LogLocator(subs=subs, numticks=8) for subs in ((1, 2, 5), (1, 3))]
        choices = [*parts, choices[0], *(MaxNLocator(num, min_n_ticks=2) for num in (4, 3, 2, 1))]
        axis.set_major_formatter("{x:g}")
    axis.set_major_locator(Spaced(choices))
    axis.set_minor_locator(NullLocator())


def name_layers(axes: Axes, own: pd.DataFrame, size: Size) -> None:
    """Name the layers along the axis, or count them where there is no room or no common name.

    Args:
        axes: The panel.
        own: What is drawn in it: ``layer`` names and their ``index``, from 0.
        size: How wide the figure is printed.
    """
    names = own.groupby("index")["layer"].unique()
    axes.set_xlim(names.index.min() - 0.4, names.index.max() + 0.6)
    alike = bool((names.map(len) == 1).all())
    if alike and len(names) <= MOST_NAMES[size]:
        axes.set_xticks(names.index, short_names([name for (name,) in names]), rotation=90)
        axes.tick_params(axis="x", labelsize=5.5)
    else:
        axes.set_xlabel("layer, in the order of execution, the first is 0")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
