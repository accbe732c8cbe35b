"""Claim 2: λ_max of the median layer over initializations, learning rates and time."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from condexp.results.claims.stability import cells, measure, spread
from condexp.results.figures.curves import (
    LINES,
    band_handles,
    color_of,
    draw_seeds,
    scale_logarithmically,
)
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import BLACK, GREY, Size, new_figure, save, style
from condexp.store.reader import Run

NORM_TITLES = {
    "none": "no normalization",
    "batch": "BatchNorm",
    "center": "centring alone",
    "scale": "scaling alone",
    "layer": "LayerNorm",
    "group": "GroupNorm",
}
NOTE = (
    r"In a cell: $\log_{10}\lambda_{\max}$ at the last step, of the runs that are finite there;",
    "below it, of how many seeds the loss at least halved; × one diverged.",
)
CURVE_INCHES, CELL_INCHES = 1.9, 0.32
LONG_NAME = 12  # letters of a row's name that leave room for two in a column's line
RANGE_SIZE = {Size.TEXT: 7.5, Size.COLUMN: 6.5}  # points
SIDE_INCHES = 1.4  # beside the cells: labels, gaps and the colour bar
NUMBER_WIDTH = 3.6  # of −11.8, in letters' height
OWN_SCALE = 0.3  # share of the common decades under which a panel gets its own


def stability(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """λ_max of the median layer's K-FAC block: over training, and by cell at the last step.

    A panel a norm. Lines are geometric means over seeds, bands their range.

    Args:
        runs: A grid over ``model.norm``, ``model.init``, ``optimizer.lr`` and seeds.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.
    """
    frame = measure(runs)
    words = [condition.split(", ") for condition in frame["condition"].unique()]
    common = [word for word in words[0] if all(word in own for own in words)]
    drawn = frame.assign(row=[*map(_row_of(common), frame["init"], frame["condition"])])
    norms = [norm for norm in NORM_TITLES if norm in set(frame["norm"])]
    heights = [CURVE_INCHES, CELL_INCHES * drawn["row"].nunique() + 0.5]
    with style():
        figure = new_figure(size.width, sum(heights) + 1.1)
        figure.suptitle(", ".join(common), fontsize=8.5)
        grid = figure.subplots(2, len(norms), squeeze=False, height_ratios=heights)
        _draw_curves(grid[0], drawn, norms)
        _draw_maps(grid[1], cells(drawn), norms, size)
        _draw_legend(figure, drawn, size)
        return save(figure, frame, folder, "stability")


def _row_of(common: Sequence[str]) -> Callable[[str, str], str]:
    """Return what names a row of cells: the initialization, and what its condition has alone."""

    def name(init: str, condition: str) -> str:
        return ", ".join([init, *(word for word in condition.split(", ") if word not in common)])

    return name


def _draw_curves(panels: Sequence[Axes], frame: pd.DataFrame, norms: Sequence[str]) -> None:
    rows, rates = list(frame["row"].unique()), sorted(frame["lr"].unique())
    axis = StepAxis.of_curves(frame["step"])
    for axes, norm in zip(panels, norms, strict=True):
        own = frame[frame["norm"] == norm]
        for (row, rate), cell in own.groupby(["row", "lr"]):
            values = 10 ** cell.pivot(index="step", columns="seed", values="log10_lambda_max")
            number = rates.index(rate)
            above = (len(rates) - 1 - number) / 2  # panels are small, and dashes are to be seen
            draw_seeds(axes, values, color_of(number), index=rows.index(row), above=above)
        axes.set(title=NORM_TITLES[norm], xlabel="step")
        axis.apply(axes)
    _share_scale(panels)
    panels[0].set_ylabel(r"$\lambda_{\max}(\Sigma_x \otimes \Sigma_{\nabla h})$, median layer")


def _share_scale(panels: Sequence[Axes]) -> None:
    """Give the panels one logarithmic scale, but for those whose curves it would make a line."""
    for axes in panels:
        axes.set_yscale("log")
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(a for a, _ in limits), max(b for _, b in limits)
    for axes, (bottom, top) in zip(panels, limits, strict=True):
        if np.log(top / bottom) > OWN_SCALE * np.log(high / low):
            axes.set_ylim(low, high)
            axes.tick_params(labelleft=axes is panels[0])
        else:
            axes.set_title(f"{axes.get_title()}\n(a scale of its own)", fontsize=7)
        scale_logarithmically(axes)


def _draw_maps(
    panels: Sequence[Axes], runs: pd.DataFrame, norms: Sequence[str], size: Size
) -> None:
    rows, rates = list(runs["row"].unique()), sorted(runs["lr"].unique())
    cell_points = 72 * (size.width - SIDE_INCHES) / (len(norms) * len(rates))
    letters = min(6.5, cell_points / NUMBER_WIDTH)
    means = runs.groupby(["norm", "row", "lr"])["log10_lambda_max"].mean()
    scale = Normalize(means.min(), means.max())
    for axes, norm in zip(panels, norms, strict=True):
        own = runs[runs["norm"] == norm]
        table = means[norm].unstack().reindex(index=rows, columns=rates)
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(table), cmap="viridis", norm=scale, edgecolor="white"
        )
        for (row, rate), cell in own.groupby(["row", "lr"]):
            value = table.loc[row, rate]
            axes.text(
                rates.index(rate) + 0.5,
                rows.index(row) + 0.5,
                f"{_number(value)}\n{cell['halved'].sum()}/{len(cell)}{_ending(cell)}",
                color="white" if scale(value) < 0.6 else BLACK,
                ha="center",
                va="center",
                fontsize=letters,
            )
        width = own.groupby(["condition", "seed"])["log10_lambda_max"].agg(spread).mean()
        if own[["row", "lr"]].drop_duplicates().shape[0] > 1:  # one cell has no range
            axes.set_title(f"range {_number(width)} decades", fontsize=RANGE_SIZE[size])
        axes.set_xticks(np.arange(len(rates)) + 0.5, [f"{rate:g}" for rate in rates])
        names = [row.replace(", ", ",\n") if size is Size.COLUMN else row for row in rows]
        axes.set_yticks(np.arange(len(rows)) + 0.5, names if axes is panels[0] else [])
        axes.set(xlabel="learning rate", ylim=(len(rows), 0))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    if means.notna().any():
        bar = panels[0].figure.colorbar(
            mesh, ax=list(panels), label=r"$\log_{10}\lambda_{\max}$", pad=0.02, aspect=12
        )
        bar.outline.set_visible(False)


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−") if np.isfinite(value) else "–"


def _ending(cell: pd.DataFrame) -> str:
    return " ×" if cell["diverged"].any() else ""


def _draw_legend(figure: Figure, frame: pd.DataFrame, size: Size) -> None:
    rates = [
        Line2D([], [], color=color_of(index), label=f"lr {rate:g}")
        for index, rate in enumerate(sorted(frame["lr"].unique()))
    ]
    inits = [
        Line2D([], [], color=GREY, linestyle=LINES[index % len(LINES)], label=row)
        for index, row in enumerate(frame["row"].unique())
    ]
    longest = max(map(len, frame["row"]))
    ncols = (3 if longest < LONG_NAME else 2) * (1 if size is Size.COLUMN else 2)
    figure.legend(
        handles=[*rates, *inits, *band_handles(frame["seed"])],
        loc="outside lower center",
        ncols=ncols,
        handlelength=2.5,
        title="\n".join(NOTE) if size is Size.COLUMN else " ".join(NOTE),
        title_fontsize=6.5,
    )
