"""The eigenvalues of one matrix of one layer: a scree plot, and each of them over training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from condexp.results.figures.curves import (
    COLORS,
    LINES,
    draw_fan,
    fan_colors,
    label_decades,
    legend_below,
)
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import GREY, Size, file_stem, new_figure, save, style
from condexp.results.run_view import SYMBOLS, headline
from condexp.store.reader import Run

HEIGHT = {Size.TEXT: 3.2, Size.COLUMN: 5.4}  # inches


def spectrum(
    runs: Sequence[Run],
    folder: Path,
    *,
    size: Size,
    layer: str | None = None,
    matrix: str = "input",
) -> tuple[Path, ...]:
    """The eigenvalues by their number at three snapshots, and over all of them.

    Both axes of the scree plot are logarithmic; a dashed line is the noise floor, under which an
    eigenvalue counts as 0 and has no place.

    Args:
        runs: The run alone.
        folder: Where to write.
        size: How wide it is printed.
        layer: The layer; the last where None.
        matrix: One with a spectrum of its own; of ``hessian`` and ``ggn`` the largest eigenvalues.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.

    Raises:
        InputError: If there is no such layer or matrix, or spectra were not saved.
    """
    (run,) = runs
    layer = layer or run.layers[-1]
    read = run.spectrum(matrix, layer)
    values = pd.DataFrame(read.to_numpy(), index=read["step"].to_numpy())
    # What is known by products has an error each, and no floor.
    floors = np.full(len(values), np.nan)
    if matrix not in run.curvature:
        floors = run.measures()[f"{matrix}_noise_floor"].sel(layer=layer).to_numpy()
    shape = (1, 2) if size is Size.TEXT else (2, 1)
    with style():
        figure = new_figure(size.width, HEIGHT[size])
        symbol = SYMBOLS.get(matrix, matrix)
        figure.suptitle(f"{headline(run)}: {symbol} of {layer}", fontsize=8.5)
        scree, fan = figure.subplots(*shape).ravel()
        _draw_scree(scree, values, floors)
        _draw_fan(fan, values)
        data = pd.DataFrame({
            "step": np.repeat(values.index.to_numpy(), values.shape[1]),
            "eig": np.tile(np.arange(values.shape[1]), len(values)),
            "value": values.to_numpy().ravel(),
            "noise_floor": np.repeat(floors, values.shape[1]),
        })
        return save(figure, data, folder, file_stem("spectrum", layer, matrix))


def _draw_scree(axes: Axes, values: pd.DataFrame, floors: NDArray[np.float64]) -> None:
    rows = sorted({0, len(values) // 2, len(values) - 1} - {-1})
    for number, row in enumerate(rows):
        step, line = values.index[row], values.iloc[row].to_numpy()
        shown = np.where(line > 0, line, np.nan)
        label = f"step {step}"
        for few, what in ((line == 0, "are 0"), (np.isnan(line), "are not known")):
            label += f", {few.sum()} of {len(line)} {what}" if few.any() else ""
        look = {"color": COLORS[number], "linestyle": LINES[number]}
        axes.plot(np.arange(1, len(line) + 1), shown, **look, marker=".", ms=2.5, label=label)
        axes.axhline(floors[row], color=COLORS[number], linestyle="--", linewidth=0.6)
    axes.set(xscale="log", yscale="log", xlabel="number of the eigenvalue", ylabel=r"$\lambda$")
    label_decades(axes.xaxis)
    label_decades(axes.yaxis)
    handles, _ = axes.get_legend_handles_labels()
    floor = Line2D([], [], color=GREY, linestyle="--", linewidth=0.6, label="noise floor")
    floor_there = bool(np.isfinite(floors).any())
    legend_below(axes, handles=[*handles, floor] if floor_there else handles, ncols=2)


def _draw_fan(axes: Axes, values: pd.DataFrame) -> None:
    steps = values.index.to_numpy(float)
    shown = values.where(values > 0).to_numpy()
    colors = fan_colors(shown.shape[1])
    if len(steps) > 1:
        draw_fan(axes, values, width=0.6)
    else:  # of one snapshot there are points
        axes.scatter(np.tile(steps, shown.shape[1]), shown.ravel(), c=colors, s=4)
    axes.set_yscale("log")
    axes.autoscale_view()
    if np.isfinite(shown).any():
        axes.set_ylim(np.nanmin(shown) / 1.5, np.nanmax(shown) * 1.5)
    label_decades(axes.yaxis)
    StepAxis.of(steps, float(max(steps, default=0))).apply(axes)
    axes.set(xlabel="step", ylabel=r"$\lambda$")
    ends = [(colors[0], r"$\lambda_1$, the largest"), (colors[-1], "the smallest")]
    handles = [Line2D([], [], color=color, label=label) for color, label in ends]
    legend_below(axes, handles=handles, ncols=2)
