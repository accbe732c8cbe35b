"""One run at a glance: the spectra of its layers over training, above loss and error."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from condexp.results.figures.steps import Array, StepAxis
from condexp.results.figures.style import (
    BLUE,
    GREY,
    LIGHT_GREY,
    TEXT_WIDTH,
    VERMILION,
    new_figure,
    save,
    style,
)
from condexp.results.layers import LayerMeasures
from condexp.results.marks import Mark
from condexp.results.setting import headline
from condexp.store.reader import Run

MATRIX_TITLES = {
    "input": r"input $\Sigma_x$",
    "grad_output": r"output gradient $\Sigma_{\nabla h}$",
    "kfac": r"K-FAC block $\Sigma_x \otimes \Sigma_{\nabla h}$",
    "weight": r"weight $WW^\top$",
    "weight_grad": "weight gradient",
    "fisher": "Fisher block",
}
MAX_LABEL = 24  # letters of a layer's name
LABEL_PITCH = 7.0  # points between two layers' names


@dataclass(frozen=True)
class _Look:
    # How cells without a number are filled, and what the legend says of them.
    facecolor: str
    hatch: str
    label: str


_LOOKS = {
    Mark.ROWS: _Look("white", "//////", "infinite: fewer rows than p·d"),
    Mark.INFINITE: _Look(GREY, "", "infinite: rank-deficient"),
    Mark.ZERO: _Look("white", "....", "zero matrix"),
    Mark.UNRELIABLE: _Look(LIGHT_GREY, "xxxxxx", "unreliable"),
    Mark.NONFINITE: _Look(LIGHT_GREY, "++++++", "not finite"),
}


def overview(
    run: Run, folder: Path, stem: str = "overview", *, p: float | None = None
) -> tuple[Path, ...]:
    """Draw λ_max and κ_p of every layer over training, the loss and the error of one run.

    Works on a run that is still going on, before its first snapshot or evaluation too.

    Args:
        run: The run.
        folder: Where to write.
        stem: Name of the files without the extension.
        p: Fraction of the condition number; the first in the file where ``None``.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.

    Raises:
        InputError: If κ was not measured at this p.
    """
    measures = LayerMeasures.read(run)
    panels = _panels(measures, p)
    metrics = run.metrics
    steps = [*metrics.index, *measures.steps]
    axis = StepAxis.of(measures.steps.astype(float), float(max(steps, default=0)))
    with style():
        num_layers = len(measures.layers)
        heat = 2 * float(np.clip(0.115 * num_layers, 0.75, 3.0)) + 0.9 if panels else 0.0
        figure = new_figure(TEXT_WIDTH, heat + 1.85)
        figure.suptitle(headline(run), fontsize=8.5)
        if panels:
            upper, lower = figure.subfigures(2, 1, height_ratios=[heat, 1.6])
            _draw_heat_maps(upper, measures, panels, axis)
        else:
            lower = figure.subfigures(1, 1)
        _draw_curves(lower, metrics, axis)
        return save(figure, _data(measures, panels, metrics), folder, stem)


def draw_overviews(runs: Sequence[Run], folder: Path | None) -> tuple[Path, ...]:
    """One run at a glance: λ_max and κ_p of each layer over training, loss and error.

    Args:
        runs: The runs, each of which gets its own figure.
        folder: Where to write; each run's own folder where ``None``.

    Returns:
        The paths of all files written.
    """
    paths: list[Path] = []
    for run in runs:
        home = run.path if run.path.is_dir() else run.path.parent
        stem = "overview" if folder is None or len(runs) == 1 else f"overview-{home.name}"
        paths += overview(run, folder or home, stem)
    return tuple(paths)


def _panels(measures: LayerMeasures, p: float | None) -> list[list[str]]:
    # Two rows of measures, λ_max above κ_p; the two factors and their product where they exist.
    if not len(measures.steps):
        return []
    main = [m for m in ("input", "grad_output", "kfac") if m in measures.matrices]
    matrices = main or list(measures.matrices)
    suffixes = ["lambda_max", measures.kappa_suffix(p)] if matrices else []
    return [[f"{matrix}_{suffix}" for matrix in matrices] for suffix in suffixes]


def _draw_heat_maps(
    figure: FigureBase, measures: LayerMeasures, panels: list[list[str]], axis: StepAxis
) -> None:
    grid = figure.subplots(2, len(panels[0]), sharex=True, sharey=True, squeeze=False)
    seen: set[Mark] = set()
    for row, names in enumerate(panels):
        kappa = row == 1
        symbol = rf"\kappa_{{{names[0].rpartition('_')[2]}}}" if kappa else r"\lambda_{\max}"
        for axes, name in zip(grid[row], names, strict=True):
            marks = measures.marks(name)
            seen |= set(marks.ravel())
            _heat_map(axes, measures.values(name), marks, axis, rf"$\log_{{10}}\,{symbol}$")
            if not kappa:
                axes.set_title(MATRIX_TITLES[name.removesuffix("_lambda_max")])
            else:
                axes.set_xlabel("step")
    _label_layers(grid[:, 0], measures.layers, figure)
    handles = [
        Patch(facecolor=look.facecolor, edgecolor="#6A6A6A", linewidth=0.4, hatch=look.hatch)
        for mark, look in _LOOKS.items()
        if mark in seen
    ]
    if handles:
        labels = [look.label for mark, look in _LOOKS.items() if mark in seen]
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _heat_map(axes: Axes, values: Array, marks: Array, axis: StepAxis, label: str) -> None:
    plain = marks == Mark.NONE
    shown = np.full(values.shape, np.nan)
    shown[plain] = np.log10(values[plain])
    low, high = (shown[plain].min(), shown[plain].max()) if plain.any() else (0.0, 0.0)
    margin = max(0.0, 0.1 - (high - low) / 2)  # one value alone still has a place on the scale
    rows = np.arange(values.shape[1] + 1) - 0.5
    mesh = axes.pcolormesh(
        axis.edges,
        rows,
        np.ma.masked_invalid(shown).T,
        cmap="viridis",
        vmin=low - margin,
        vmax=high + margin,
        rasterized=True,  # thousands of vector cells show hairlines between them
    )
    if plain.any():
        bar = axes.figure.colorbar(mesh, ax=axes, label=label, pad=0.02, aspect=25)
        bar.locator = MaxNLocator(5)
        bar.outline.set_visible(False)
        bar.update_ticks()
    for mark, look in _LOOKS.items():
        boxes = list(_boxes(marks == mark, axis.edges))
        axes.add_collection(
            PolyCollection(
                boxes, facecolor=look.facecolor, edgecolor="#6A6A6A", linewidth=0, hatch=look.hatch
            ),
            autolim=False,
        )
    axes.set_ylim(rows[-1], rows[0])  # the first layer on top
    axis.apply(axes)


def _boxes(cells: Array, edges: Array) -> Iterator[list[tuple[float, float]]]:
    # Neighbouring snapshots of a layer are one box, so that a hatch runs on undisturbed.
    for layer, flags in enumerate(cells.T):
        borders = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
        for start, stop in borders.reshape(-1, 2):
            left, right, top, bottom = edges[start], edges[stop], layer - 0.5, layer + 0.5
            yield [(left, top), (right, top), (right, bottom), (left, bottom)]


def _label_layers(column: Sequence[Axes], layers: Sequence[str], figure: FigureBase) -> None:
    pitch = 72 * float(np.clip(0.115 * len(layers), 0.75, 3.0)) / len(layers)
    every = int(np.ceil(LABEL_PITCH / pitch))
    ticks = list(range(0, len(layers), every))
    for axes in column:
        axes.set_yticks(ticks, [_shorten(layers[i]) for i in ticks])
        axes.tick_params(axis="y", length=2 if every == 1 else 3)
    if every > 1:
        figure.supylabel(f"layer (every {every}th named)", fontsize=7)


def _shorten(name: str) -> str:
    if len(name) <= MAX_LABEL:
        return name
    kept = MAX_LABEL - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"


def _draw_curves(figure: FigureBase, metrics: pd.DataFrame, axis: StepAxis) -> None:
    errors = metrics[["train_error", "test_error"]].notna().any().any()
    panels = figure.subplots(1, 2 if errors else 1, squeeze=False)[0]
    loss = panels[0]
    _curve(loss, metrics["loss"], GREY, "batch", linewidth=0.5)
    _curve(loss, metrics["train_loss"], BLUE, "train")
    _curve(loss, metrics["test_loss"], VERMILION, "test")
    values = metrics[["loss", "train_loss", "test_loss"]].to_numpy(dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > 10 * positive.min():
        loss.set_yscale("log")
    loss.set_ylabel("loss")
    if errors:
        _curve(panels[1], metrics["train_error"], BLUE, "train")
        _curve(panels[1], metrics["test_error"], VERMILION, "test")
        panels[1].set_ylabel("error (%)")
        panels[1].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlabel("step")
        axis.apply(axes)
        if axes.lines:
            axes.legend(ncols=3, loc="best", handlelength=1.2, columnspacing=1.0)


def _curve(
    axes: Axes, values: pd.Series, color: str, name: str, *, linewidth: float = 1.2
) -> None:
    curve = values[np.isfinite(values)]
    if len(curve):
        marker = "o" if len(curve) <= 20 else None
        axes.plot(
            curve.index,
            curve.to_numpy(),
            color=color,
            label=name,
            marker=marker,
            markersize=2.2,
            linewidth=linewidth,
        )


def _data(
    measures: LayerMeasures, panels: list[list[str]], metrics: pd.DataFrame
) -> pd.DataFrame:
    steps, layers = measures.steps, np.array(measures.layers, dtype=object)
    parts = [
        pd.DataFrame(
            {
                "panel": name,
                "layer": np.tile(layers, len(steps)),
                "step": np.repeat(steps, len(layers)),
                "value": measures.values(name).ravel(),
                "mark": [mark.name.lower() for mark in measures.marks(name).ravel()],
            }
        )
        for names in panels
        for name in names
    ]
    for name in ("loss", "train_loss", "test_loss", "train_error", "test_error"):
        curve = metrics[name].dropna()
        parts.append(
            pd.DataFrame({"panel": name, "layer": "", "step": curve.index, "value": curve})
        )
    return pd.concat(parts, ignore_index=True)
