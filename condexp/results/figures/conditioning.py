"""Claim 4 as a picture: κ_0.5 of K-FAC's matrix layer by layer, for each normalisation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from condexp.results.claims import conditioning as claim
from condexp.results.figures.curves import BOUND, BOUND_LABEL, color_of, draw_seeds, mark_bounds
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.store.reader import Run

PANEL_HEIGHT = 1.9  # inches
INFINITE_AT = 0.97  # height, as a share of the panel, of the marks for infinite values


def conditioning(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """κ_0.5 of every layer's ``kfac`` at the last snapshot: a panel a condition, a curve a norm.

    Curves are geometric means over seeds, bands their range. A full triangle at the top marks a
    layer whose κ is infinite in at least one seed, an open one at its place a seed's κ that is
    known from below only; a layer measured with too few rows for its κ to speak
    of the network is left out.

    Args:
        runs: Runs that measured ``kfac``.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.
    """
    frame = claim.measure(runs)
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    conditions = sorted(last["condition"].unique())
    norms = list(dict.fromkeys(sorted(last["norm"], key=_order)))
    num_cols = min(len(conditions), 2 if size is Size.TEXT else 1)
    num_rows = -(-len(conditions) // num_cols)
    with style():
        figure = new_figure(size.width, num_rows * PANEL_HEIGHT + 0.3)
        grid = figure.subplots(num_rows, num_cols, sharey=True, squeeze=False)
        marks: set[str] = set()
        for axes in grid.flat[len(conditions) :]:
            axes.set_axis_off()
        for axes, condition in zip(grid.flat, conditions, strict=False):
            axes.set_title(condition)
            axes.set_yscale("log")
            for index, norm in enumerate(norms):
                own = last[(last["condition"] == condition) & (last["norm"] == norm)]
                marks |= _draw(axes, own[own["enough_rows"]], index)
            axes.set_xlabel("layer, in the order of execution")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        for axes in grid[:, 0]:
            axes.set_ylabel(r"$\kappa_{0.5}$ of $\Sigma_x \otimes \Sigma_{\nabla h}$")
        lines = [
            Line2D([], [], color=color_of(i), label=f"norm={norm}") for i, norm in enumerate(norms)
        ]
        if "infinite" in marks:
            full = Line2D([], [], color=GREY, marker="^", linestyle="", markersize=3, label="∞")
            lines.append(full)
        if "bound" in marks:
            lines.append(Line2D([], [], **BOUND, color=GREY, markersize=3.5, label=BOUND_LABEL))
        figure.legend(handles=lines, loc="outside lower center", ncols=4)
        return save(figure, last, folder, "conditioning")


def _draw(axes: Axes, own: pd.DataFrame, index: int) -> set[str]:
    # Draws one normalisation, and says which marks the legend has to explain.
    color, marks = color_of(index), set()
    values, highs = (
        own.pivot(index="index", columns="seed", values=name) for name in ("kappa", "kappa_high")
    )
    draw_seeds(axes, values, color)
    if mark_bounds(axes, values, highs, color):
        marks.add("bound")
    infinite = [layer for layer, row in values.iterrows() if np.isinf(row).any()]
    if infinite:
        beside = [float(str(layer)) + 0.12 * index for layer in infinite]  # those of other norms
        top = [INFINITE_AT] * len(infinite)
        across = axes.get_xaxis_transform()
        axes.plot(beside, top, "^", color=color, markersize=3, transform=across)
        marks.add("infinite")
    return marks


def _order(norm: str) -> tuple[int, str]:
    known = ("none", "batch", "center", "scale")
    return (known.index(norm) if norm in known else len(known), norm)
