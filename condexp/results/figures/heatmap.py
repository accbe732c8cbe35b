"""A measure of every layer over training, as a heat map; what is no number has its own look."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from condexp.results.figures.curves import BOUND, FEW, scale_logarithmically
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import BLUE, GREY, LIGHT_GREY
from condexp.results.layer_names import short_names
from condexp.results.tables.numbers import Mark

ROW_INCHES = 0.115  # height of a layer
MIN_INCHES, MAX_INCHES = 0.75, 3.0
LABEL_POINTS = 7.0  # height of a layer's name


@dataclass(frozen=True)
class Look:
    """How cells without a number are filled, and what the legend says of them."""

    facecolor: str
    hatch: str
    label: str

    @property
    def drawn(self) -> dict[str, Any]:
        """What matplotlib is told."""
        return {
            "facecolor": self.facecolor,
            "edgecolor": HATCH_COLOR,
            "linewidth": 0,
            "hatch": self.hatch,
        }


LOOKS = {
    Mark.AT_LEAST: Look("none", "\\\\\\\\", "≥: a lower bound"),
    Mark.ROWS: Look("white", "//////", "infinite: fewer rows than p·d"),
    Mark.INFINITE: Look(GREY, "", "infinite: rank-deficient"),
    Mark.ZERO: Look("white", "....", "zero matrix"),
    Mark.UNRELIABLE: Look(LIGHT_GREY, "xxxxxx", "unreliable"),
    Mark.NONFINITE: Look(LIGHT_GREY, "++++++", "not finite"),
    Mark.INCOMPLETE: Look(LIGHT_GREY, "oooo", "incomplete rows"),
}
HATCH_COLOR = "#6A6A6A"


def map_height(num_layers: int) -> float:
    """Choose the height of a heat map.

    Args:
        num_layers: Number of its rows.

    Returns:
        Inches.
    """
    return float(np.clip(ROW_INCHES * num_layers, MIN_INCHES, MAX_INCHES))


def draw_heat_map(
    axes: Axes,
    values: NDArray[np.float64],
    marks: NDArray[np.object_],
    axis: StepAxis,
    label: str,
) -> None:
    """Draw log₁₀ of a measure: layers from top to bottom, steps from left to right.

    Args:
        axes: The panel.
        values: ``[S, L]``, positive where ``marks`` says that there is a number.
        marks: ``[S, L]`` of `Mark`.
        axis: Where the S snapshots lie.
        label: Of the colour bar.
    """
    plain = _has_number(marks)
    shown = np.full(values.shape, np.nan)
    shown[plain] = np.log10(values[plain])
    low, high = (shown[plain].min(), shown[plain].max()) if plain.any() else (0.0, 0.0)
    margin = max(0.0, 0.1 - (high - low) / 2)  # one value alone still has a place on the scale
    borders = np.arange(values.shape[1] + 1) - 0.5
    mesh = axes.pcolormesh(
        axis.edges,
        borders,
        np.ma.masked_invalid(shown).T,
        cmap="viridis",
        vmin=low - margin,
        vmax=high + margin,
        rasterized=True,  # thousands of vector cells show hairlines between them
    )
    if plain.any():
        bar = axes.figure.colorbar(mesh, ax=axes, label=label, pad=0.02, aspect=25)
        bar.locator = MaxNLocator(5, steps=[1, 2, 5, 10])
        bar.outline.set_visible(False)
        bar.update_ticks()
    for mark, look in LOOKS.items():
        boxes = PolyCollection(list(_boxes(marks == mark, axis.edges)))
        boxes.set(**look.drawn)
        axes.add_collection(boxes, autolim=False)
    axes.set_ylim(borders[-1], borders[0])
    axis.apply(axes)


def draw_line(
    axes: Axes,
    values: NDArray[np.float64],
    marks: NDArray[np.object_],
    axis: StepAxis,
    label: str,
) -> None:
    """Draw a measure of one layer, which as a heat map would be a single row.

    Args:
        axes: The panel.
        values: ``[S, 1]``, positive where ``marks`` says that there is a number.
        marks: ``[S, 1]`` of `Mark`; where there is no number, cells say so as in a heat map.
        axis: Where the S snapshots lie.
        label: Of the vertical axis.
    """
    plain = _has_number(marks)[:, 0]
    shown = np.where(plain, values[:, 0], np.nan)
    axes.plot(axis.steps, shown, color=BLUE, marker="o" if len(shown) <= FEW else "", markersize=2)
    bounds = (marks == Mark.AT_LEAST)[:, 0]
    axes.plot(axis.steps[bounds], shown[bounds], **BOUND, color=BLUE, markersize=4)
    if plain.any():
        scale_logarithmically(axes)
    else:
        axes.set_yticks([])
    for mark, look in LOOKS.items():
        for (left, _), (right, _), *_ in _boxes((marks == mark) & ~plain[:, None], axis.edges):
            axes.axvspan(left, right, **look.drawn)
    axes.set_ylabel(label)
    axis.apply(axes)


def _has_number(marks: NDArray[np.object_]) -> NDArray[np.bool_]:
    numbers = Mark.NONE, Mark.AT_LEAST, Mark.ESTIMATED
    found: NDArray[np.bool_] = np.any([marks == mark for mark in numbers], axis=0)
    return found


def draw_legend(figure: FigureBase, marks: Iterable[Mark]) -> None:
    """Explain the cells without a number below a figure; nothing if there are none.

    Args:
        figure: The figure.
        marks: Every mark that was drawn.
    """
    looks = [look for mark, look in LOOKS.items() if mark in set(marks)]
    handles = [
        Patch(facecolor=k.facecolor, edgecolor=HATCH_COLOR, linewidth=0.4, hatch=k.hatch)
        for k in looks
    ]
    if handles:
        figure.legend(handles, [k.label for k in looks], loc="outside lower center", ncols=3)


def label_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Name the layers along a heat map, as many of them as there is room for.

    Args:
        axes: The panel, `map_height` high.
        layers: All names in order.
    """
    points = 72 * map_height(len(layers)) / len(layers)
    every = int(np.ceil(LABEL_POINTS / points))
    ticks = [*range(0, len(layers) - every, every), len(layers) - 1]
    axes.set_yticks(ticks, short_names([layers[i] for i in ticks]))
    if every > 1:
        axes.set_ylabel(f"layers (1 in {every} named)")


def _boxes(
    cells: NDArray[np.bool_], edges: NDArray[np.float64]
) -> Iterator[list[tuple[float, float]]]:
    # Neighbouring snapshots of a layer are one box, so that a hatch runs on undisturbed.
    for layer, flags in enumerate(cells.T):
        changes = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
        for start, stop in changes.reshape(-1, 2):
            left, right, top, bottom = edges[start], edges[stop], layer - 0.5, layer + 0.5
            yield [(left, top), (right, top), (right, bottom), (left, bottom)]
