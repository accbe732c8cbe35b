"""λ_max of the Hessian over training, against the edge where gradient descent becomes unstable."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from condexp.results.config_keys import flatten, lookup, setting_text
from condexp.results.figures.curves import FEW, color_of, label_decades
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import BLUE, GREY, Size, new_figure, save, style
from condexp.results.run_view import headline
from condexp.results.sharpness import Edge, sharpness_table
from condexp.store.reader import Run
from condexp.store.run_folder.identity import identity_config

PANEL, MARGIN = 1.9, 0.8  # inches
OF_A_PANEL = ("seed", "optimizer.lr")
FIRST = ("model.name", "model.norm")  # by which panels are named, if that is enough
MOST_BESIDE = {Size.TEXT: 3, Size.COLUMN: 2}


def sharpness(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """Draw λ_max of the networks' Hessians over training, with errors, and each run's edge.

    A panel for the runs that differ in learning rate and seed alone, a colour a learning rate. The
    edge of SGD is dashed, 2/lr (:class:`.Edge`); other optimizers have none.

    Args:
        runs: Runs that measured ``sharpness`` at training steps, or ``hessian`` at snapshots.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.

    Raises:
        InputError: If a run has neither.
    """
    rates = sorted({_rate(run) for run in runs})
    titles = _titles(runs)
    frames = [
        sharpness_table(run).assign(run=run.path.name, panel=title, lr=_rate(run))
        for run, title in zip(runs, titles, strict=True)
    ]
    panels = list(dict.fromkeys(titles))
    beside = min(len(panels), MOST_BESIDE[size])
    rows = -(-len(panels) // beside)
    with style():
        figure = new_figure(size.width, PANEL * rows + MARGIN)
        grid = figure.subplots(rows, beside, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        places = dict(zip(panels, grid.flat, strict=False))
        for run, title, frame in zip(runs, titles, frames, strict=True):
            draw_sharpness(places[title], frame, color_of(rates.index(_rate(run))))
        for title, axes in places.items():
            _scale(
                axes, pd.concat([f for f, of in zip(frames, titles, strict=True) if of == title])
            )
            axes.set_title(title)
        for axes in grid[:, 0]:
            axes.set_ylabel(r"$\lambda_\mathrm{max}$ of the Hessian")
        edges = {edge.label for run in runs if (edge := Edge.of(run.config)) is not None}
        for number, rate in enumerate(rates):
            grid[0, 0].plot([], [], color=color_of(number), label=f"lr {rate:g}")
        for label in sorted(edges):
            grid[0, 0].plot([], [], color=GREY, linewidth=0.8, linestyle="--", label=label)
        figure.legend(loc="outside lower center", ncols=2 if size is Size.COLUMN else 6)
        return save(figure, pd.concat(frames, ignore_index=True), folder, "sharpness")


def draw_sharpness(axes: Axes, frame: pd.DataFrame, color: str) -> None:
    """Draw one run's λ_max over its steps, a band of its error, and its edge.

    Args:
        axes: The panel.
        frame: As :func:`.sharpness_table` returns it.
        color: Of all three.
    """
    steps, values, errors, edge = (
        frame[name].to_numpy(dtype=float) for name in ("step", "lambda_max", "error", "edge")
    )
    axes.plot(steps, values, color=color, marker="o" if len(steps) <= FEW else "", markersize=2.5)
    axes.fill_between(steps, values - errors, values + errors, color=color, alpha=0.2, linewidth=0)
    axes.plot(steps, edge, color=color, linewidth=0.8, linestyle="--")


def draw_with_edge(axes: Axes, run: Run) -> None:
    """Draw one run's λ_max and edge in a panel of its own, with their names.

    Args:
        axes: The panel.
        run: A run that measured it.
    """
    frame, edge = sharpness_table(run), Edge.of(run.config)
    draw_sharpness(axes, frame, BLUE)
    axes.lines[0].set_label(r"$\lambda_\mathrm{max}$")
    if edge is not None:
        axes.lines[1].set_label(edge.label)
    axes.set_ylabel(r"$\lambda_\mathrm{max}$ of the Hessian")
    _scale(axes, frame)


def _scale(axes: Axes, frame: pd.DataFrame) -> None:
    """Choose the axes' scales: λ_max spans decades, or is 0 and below."""
    steps = np.unique(frame["step"].to_numpy(dtype=float))
    StepAxis.of(steps, float(steps.max(initial=0.0))).apply(axes)
    axes.set_xlabel("step")
    values = frame["lambda_max"].to_numpy(dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return
    # A band that reaches 0, or an edge far away, would squeeze the curve.
    shown = [*positive, *frame["edge"].to_numpy(dtype=float)]
    top = min(np.nanmax(shown), 30 * positive.max())
    axes.set_yscale("log")
    axes.set_ylim(positive.min() / 1.5, top * 1.5)
    label_decades(axes.yaxis)


def _rate(run: Run) -> float:
    """Return the learning rate that a run was given; of a loop of one's own, its first."""
    given = lookup(run.config, "optimizer.lr")
    if isinstance(given, int | float):
        return float(given)
    rates = run.metrics["lr"].dropna()
    return float(rates.iloc[0]) if len(rates) else float("nan")


def _titles(runs: Sequence[Run]) -> list[str]:
    """Name the panel of each run.

    Returns:
        How its panel differs from the others, in as few keys as tell them apart, the model's first:
        runs that differ in learning rate and seed alone share one. Alone, what it is.
    """
    if len(runs) == 1:
        return [headline(runs[0])]
    flat = [dict(flatten(identity_config(run.config))) for run in runs]
    values = [{k: setting_text(v) for k, v in each.items() if k not in OF_A_PANEL} for each in flat]
    keys = dict.fromkeys((*FIRST, *(key for each in values for key in each)))
    chosen: list[str] = []
    distinct = 1
    for key in sorted(
        keys, key=lambda key: (*(key != first for first in FIRST), list(keys).index(key))
    ):
        found = len({tuple(each.get(other) for other in (*chosen, key)) for each in values})
        if found > distinct:
            chosen, distinct = [*chosen, key], found
    return [
        " ".join(f"{k.removesuffix('.name')}={each[k]}" for k in chosen if k in each)
        for each in values
    ]
