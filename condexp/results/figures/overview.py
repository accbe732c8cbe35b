"""One run at a glance: the spectra of its layers over training, above loss and error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from condexp.results.figures.curves import legend_below, scale_logarithmically
from condexp.results.figures.heatmap import (
    draw_heat_map,
    draw_legend,
    draw_line,
    label_layers,
    map_height,
)
from condexp.results.figures.sharpness import draw_with_edge
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import (
    BLUE,
    GREY,
    VERMILION,
    Size,
    new_figure,
    save,
    style,
)
from condexp.results.figures.ticks import step_locator
from condexp.results.layer_measures import LayerMeasures
from condexp.results.layer_names import short_names
from condexp.results.run_view import headline
from condexp.results.sharpness import has_sharpness
from condexp.results.tables.numbers import Mark
from condexp.store.reader import Run

MATRIX_TITLES = {
    "input": r"input $\Sigma_x$",
    "grad_output": r"output gradient $\Sigma_{\nabla h}$",
    "kfac": r"K-FAC block $\Sigma_x \otimes \Sigma_{\nabla h}$",
    "ekfac": "EKFAC block",
    "weight": r"weight $W W^{T}$",
    "weight_grad": "weight gradient",
    "fisher": "Fisher block",
}
HEAT_MARGIN, ROW_MARGIN = 0.4, (0.25, 0.3)  # inches, for titles and labels
CURVE_INCHES = 1.85  # height of a row of curves
MOST_CURVES_BESIDE = 2  # at column width
MOST_BESIDE = 3  # panels beside each other at text width
CURVES = ("loss", "train_loss", "test_loss", "train_error", "test_error", "sharpness")


def overview(
    runs: Sequence[Run],
    folder: Path,
    stem: str = "overview",
    *,
    p: float | None = None,
    size: Size = Size.TEXT,
) -> tuple[Path, ...]:
    """λ_max and κ_p of every layer over training, loss and error of one run.

    Works on a live run too, from its first step on.

    Args:
        runs: The run alone.
        folder: Where to write.
        stem: Name of the files without the extension.
        p: Fraction of the condition number; the first that was measured where ``None``.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.

    Raises:
        InputError: If κ was not measured at this p.
    """
    (run,) = runs
    measures, metrics = LayerMeasures.read(run), run.metrics
    panels = _panels(measures, p)
    last = max([*metrics.index, *measures.steps], default=0)
    axis = StepAxis.of(measures.steps.astype(float), float(last))
    stacked = bool(panels) and (size is Size.COLUMN or len(panels[0]) > MOST_BESIDE)
    if stacked:  # a matrix below the other
        panels = [list(column) for column in zip(*panels, strict=True)]
    margin = HEAT_MARGIN + ROW_MARGIN[stacked] * len(panels)
    heat = len(panels) * map_height(len(measures.layers)) + margin if panels else 0.0
    with style():
        num_curves = 2 + has_sharpness(run)
        rows = 1 if size is Size.TEXT else -(-num_curves // MOST_CURVES_BESIDE)
        below = CURVE_INCHES * rows
        figure = new_figure(size.width, heat + below + 0.25)
        figure.suptitle(headline(run), fontsize=8.5)
        if panels:
            parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[heat, below]).ravel()
            _draw_heat_maps(parts[0], measures, panels, axis, stacked=stacked)
        _draw_curves(parts[1] if panels else figure, run, metrics, size)
        return save(figure, _data(measures, panels, metrics), folder, stem)


def _panels(measures: LayerMeasures, p: float | None) -> list[list[str]]:
    # λ_max above κ_p: of the factors and their product where they exist, else of all there are.
    main = tuple(m for m in ("input", "grad_output", "kfac", "fisher") if m in measures.matrices)
    matrices = main or measures.matrices
    if not matrices or not len(measures.steps):
        return []
    fractions = measures.fractions[:1] if p is None else (float(p),)
    kinds = ("lambda_max", *(f"kappa_{fraction}" for fraction in fractions))
    return [[f"{matrix}_{kind}" for matrix in matrices] for kind in kinds]


def _draw_heat_maps(
    figure: FigureBase,
    measures: LayerMeasures,
    panels: Sequence[Sequence[str]],
    axis: StepAxis,
    *,
    stacked: bool,
) -> None:
    shape, single = (len(panels), len(panels[0])), len(measures.layers) == 1
    place: Literal["left", "center"] = "left" if stacked else "center"
    grid = figure.subplots(*shape, sharex=True, sharey=not single, squeeze=False)
    draw = draw_line if single else draw_heat_map
    seen: set[Mark] = set()
    for axes, name in zip(grid.flat, (name for row in panels for name in row), strict=True):
        measure, marks = measures.find(name), measures.marks(name)
        seen |= set(marks.ravel().tolist())
        kappa = None if measure.p is None else measures.fractions[measure.p]
        symbol = r"\lambda_{\max}" if kappa is None else rf"\kappa_{{{kappa:g}}}"
        label = rf"${symbol}$" if single else rf"$\log_{{10}}\,{symbol}$"
        draw(axes, measures.values(name), marks, axis, label)
        if kappa is None:
            axes.set_title(MATRIX_TITLES[str(measure.matrix)], loc=place)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for axes in () if single else grid[:, 0]:
        label_layers(axes, measures.layers)
    for axes in () if single else grid[:, 1:].flat:
        axes.tick_params(axis="y", left=False)
    if single:
        figure.suptitle(f"the only layer, {short_names(measures.layers)[0]}", fontsize=7.5)
    draw_legend(figure, seen)


def _draw_curves(figure: FigureBase, run: Run, metrics: pd.DataFrame, size: Size) -> None:
    has_errors = bool(metrics[["train_error", "test_error"]].notna().any(axis=None))
    is_sharp = has_sharpness(run)
    num = 1 + has_errors + is_sharp
    across = num if size is Size.TEXT else min(num, MOST_CURVES_BESIDE)
    panels = figure.subplots(-(-num // across), across, squeeze=False).ravel()
    for axes in panels[num:]:
        axes.set_axis_off()
    _curve(panels[0], metrics["loss"], GREY, "batch", thin=True)
    _curve(panels[0], metrics["train_loss"], BLUE, "train", beneath=True)
    _curve(panels[0], metrics["test_loss"], VERMILION, "test")
    losses = metrics[["loss", "train_loss", "test_loss"]].to_numpy(dtype=float)
    positive = losses[np.isfinite(losses) & (losses > 0)]
    if positive.size and positive.max() > 10 * positive.min():
        scale_logarithmically(panels[0])
    panels[0].set_ylabel("loss")
    if has_errors:
        _curve(panels[1], metrics["train_error"], BLUE, "train", beneath=True)
        _curve(panels[1], metrics["test_error"], VERMILION, "test")
        panels[1].set_ylabel("error (%)")
        panels[1].set_ylim(bottom=-0.03 * panels[1].get_ylim()[1])  # 0 is not under the frame
    if is_sharp:
        draw_with_edge(panels[num - 1], run)  # it has an axis of steps of its own
    last = max([*metrics.index, 1])
    for axes in panels[: num - is_sharp]:
        axes.set_xlabel("step")
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.xaxis.set_major_locator(step_locator(6))
    for axes in panels[:num]:
        if axes.lines:
            legend_below(axes, ncols=3, handlelength=1.2, columnspacing=1.0)


def _curve(
    axes: Axes,
    values: "pd.Series[float]",
    color: str,
    name: str,
    *,
    thin: bool = False,
    beneath: bool = False,
) -> None:
    curve = values[np.isfinite(values)]
    if len(curve):
        axes.plot(
            curve.index.to_numpy(),
            curve.to_numpy(),
            color=color,
            label=name,
            # Wider where another may coincide with it.
            linewidth=0.5 if thin else 2.6 if beneath else 1.2,
            marker="o" if len(curve) <= 20 else "",  # one evaluation alone is a point, not a line
            markersize=4.5 if beneath else 2.2,
            clip_on=False,
        )


def _data(
    measures: LayerMeasures, panels: Sequence[Sequence[str]], metrics: pd.DataFrame
) -> pd.DataFrame:
    columns = ("panel", "layer", "step", "value", "mark", "low", "high")
    parts = [
        measures
        .table([name])
        .rename(columns={name: "value"})
        .assign(
            panel=name,
            mark=[mark.name.lower() for mark in measures.marks(name).ravel().tolist()],
            low=measures.interval(name)[0].ravel(),
            high=measures.interval(name)[1].ravel(),
        )
        for row in panels
        for name in row
    ]
    for name in (name for name in CURVES if name in metrics):
        curve = metrics[name].dropna()
        parts.append(
            pd.DataFrame({"step": curve.index, "value": curve.to_numpy()}).assign(
                panel=name, layer="", mark="none", low=np.nan, high=np.nan
            )
        )
    return pd.concat(parts, ignore_index=True)[list(columns)]
