"""Runs in one plot: a measure of theirs over training, a curve a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.figures.curves import (
    BOUND,
    BOUND_LABEL,
    COLORS,
    FEW,
    LINES,
    MARKERS,
    scale_logarithmically,
)
from condexp.results.figures.run_labels import legend_inches, run_labels
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import GREY, Size, file_stem, new_figure, save, style
from condexp.results.layer_measures import LayerMeasures
from condexp.results.tables.numbers import Mark
from condexp.store.reader import Run

HEIGHT = 2.6  # inches, without the legend
LOGARITHMIC = ("kappa", "lambda", "loss", "norm", "trace", "lr", "domination")


def compare(
    runs: Sequence[Run],
    folder: Path,
    *,
    size: Size,
    measure: str = "kfac_kappa_0.5",
    layer: str | None = None,
) -> tuple[Path, ...]:
    """One measure of several runs over training, a curve a run, named by how the runs differ.

    Args:
        runs: The runs.
        folder: Where to write.
        size: How wide it is printed.
        measure: A measure of layers, or a column of ``Run.metrics`` such as ``test_error``.
        layer: The layer, of a measure of layers; the median of the layers where None.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.

    Raises:
        InputError: If a run has no such measure or layer.
    """
    names = run_labels(runs, size)
    parts = [
        _curve(run, measure, layer).assign(run=str(run.path), label=name)
        for run, name in zip(runs, names, strict=True)
    ]
    frame = pd.concat(parts, ignore_index=True)
    with style():
        figure = new_figure(size.width, HEIGHT + legend_inches(names))
        axes = figure.subplots()
        for number, (part, name) in enumerate(zip(parts, names, strict=True)):
            wider, color = min(len(parts) - 1 - number, 3), COLORS[number % len(COLORS)]
            again = number // len(COLORS)  # the colours' next turn has other dashes and points
            shown = part["value"].where(np.isfinite(part["value"]))
            axes.plot(
                part["step"],
                shown,
                color=color,
                linestyle=LINES[again % len(LINES)],
                linewidth=1.2 + 0.8 * wider,  # to be seen beside those that cover it
                marker=MARKERS[again % len(MARKERS)] if len(part) <= FEW else "",
                markersize=2 + wider,
                label=name,
            )
            bounds = part["bound"].to_numpy(dtype=bool)
            axes.plot(part["step"][bounds], shown[bounds], **BOUND, color=color, markersize=4.5)
        if frame["bound"].any():
            axes.plot([], [], **BOUND, color=GREY, markersize=4.5, label=BOUND_LABEL)
        if any(word in measure for word in LOGARITHMIC) and (frame["value"] > 0).any():
            scale_logarithmically(axes)
        lost = int((~np.isfinite(frame["value"])).sum())
        note = f"{lost} of {len(frame)} points are infinite or missing" if lost else ""
        StepAxis.of_curves(frame["step"]).apply(axes)
        axes.set(xlabel="step", ylabel=_label(measure, layer, parts))
        figure.legend(loc="outside lower center", ncols=1, title=note, title_fontsize=6.5)
        return save(figure, frame, folder, file_stem("compare", measure, layer or ""))


def _curve(run: Run, name: str, layer: str | None) -> pd.DataFrame:
    """Read a measure of a run.

    Returns:
        Its steps, its values, and which are lower bounds.

    Raises:
        InputError: If there is no such measure or layer.
    """
    metrics = run.metrics
    if name in metrics:
        if layer is not None:
            raise InputError(f"{name} is of the whole run: leave out --layer.")
        curve = metrics[name].dropna()
        return pd.DataFrame({"step": curve.index, "value": curve.to_numpy(), "bound": False})
    data = LayerMeasures.read(run)
    data.find(name)  # raises, and names the nearest
    layers = list(data.layers) if layer is None else [data.require_layer(layer)]
    columns = [data.layers.index(each) for each in layers]
    values, marks = data.values(name)[:, columns], data.marks(name)[:, columns]
    middle = np.median(values, axis=1) if len(columns) else np.full(len(values), np.nan)
    # The median is a bound where a layer that is one lies at or below it.
    bound = ((marks == Mark.AT_LEAST) & (values <= middle[:, None])).any(axis=1)
    return pd.DataFrame({"step": data.steps, "value": middle, "bound": bound})


def _label(measure: str, layer: str | None, parts: Sequence[pd.DataFrame]) -> str:
    metric = measure in {"loss", "lr", "train_loss", "train_error", "test_loss", "test_error"}
    if metric or not parts:
        return f"{measure} (%)" if measure.endswith("error") else measure
    return f"{measure}\n{layer or 'median of the layers'}"
