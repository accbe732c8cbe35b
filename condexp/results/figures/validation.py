"""Claim 1 as a picture: K-FAC's λ_max and κ_0.5 of every layer against those of the exact block."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from condexp.results.claims import validation as claim
from condexp.results.figures.curves import (
    BOUND,
    BOUND_LABEL,
    MARKERS,
    color_of,
    label_decades,
)
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.store.reader import Run
from condexp.store.schema.matrices import NETWORK

SYMBOLS = {"lambda_max": r"\lambda_{\max}", "kappa_0.5": r"\kappa_{0.5}"}
NOTE = (
    "Least $r$: the smallest correlation of the logarithms, over the conditions (mean over seeds), "
    "without the crosses."
)
REASONS = {
    "lambda_max": "not finite or zero",
    "kappa_0.5": "infinite, or of a layer without a gradient for each weight",
}
NOTE_LETTERS = {Size.TEXT: 130, Size.COLUMN: 62}
MOST_IN_ROW = 8  # conditions that one pair of panels can hold
PANEL = {Size.TEXT: 3.0, Size.COLUMN: 1.7}  # inches
NUM_ENTRIES = {Size.TEXT: 2, Size.COLUMN: 1}  # of the legend in a line


def validation(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """λ_max and κ_0.5 of ``kfac`` against ``fisher``: a point a run, snapshot and layer.

    On the dashed line the two agree. Crosses are the network as a whole, open triangles pairs of
    which one κ is known from below only. κ_0.5 is shown of the layers that have a gradient for each
    weight. Where there are more than eight conditions, those with the same words in front share a
    row. A panel's title holds the least of its conditions' correlations (mean over seeds, without
    the crosses).

    Args:
        runs: Runs that measured both matrices.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.
    """
    frame = claim.measure(runs)
    numbers = claim.correlations(frame)
    numbers = numbers[numbers["snapshots"] == "all"]
    groups = list(_split(sorted(frame["condition"].unique())))
    notes = textwrap.wrap(" ".join([NOTE, *_missing(frame)]), NOTE_LETTERS[size])
    heights = [PANEL[size] + 0.14 * _legend_lines(names, size) + 0.45 for _, names in groups]
    with style():
        figure = new_figure(size.width, sum(heights) + 0.12 * len(notes) + 0.3)
        parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights).ravel()
        for part, (title, names) in zip(parts, groups, strict=True):
            part.suptitle(title, fontsize=8.5)
            own = frame[frame["condition"].isin(names)]
            _draw_group(part, own, names, numbers[numbers["condition"].isin(names)])
            part.legend(*_entries(part), loc="outside lower center", ncols=NUM_ENTRIES[size])
        figure.supxlabel("\n".join(notes), fontsize=6.5, x=0.01, ha="left")
        return save(figure, frame, folder, "validation")


def _split(names: Sequence[str], num_words: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Yield the conditions that share a row, with the words that they have in common."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(", ".join(name.split(", ")[:num_words]), []).append(name)
    for title, own in groups.items():
        if len(own) > MOST_IN_ROW:
            yield from _split(own, num_words + 1)
        else:
            yield title, own


def _legend_lines(names: Sequence[str], size: Size) -> int:
    return -(-(len(names) + 2) // NUM_ENTRIES[size])  # two are the crosses' and the bounds'


def _entries(part: SubFigure) -> tuple[list[Any], list[Any]]:
    return part.axes[-1].get_legend_handles_labels()  # of κ, which has bounds


def _draw_group(
    part: SubFigure, frame: pd.DataFrame, names: Sequence[str], numbers: pd.DataFrame
) -> None:
    for axes, (measure, symbol) in zip(part.subplots(1, 2), SYMBOLS.items(), strict=True):
        _draw(axes, claim.points(frame, measure), names, part.get_suptitle())
        least = numbers.loc[numbers["measure"] == claim.SYMBOLS[measure], "r"].min(skipna=False)
        said = f"{least:.3f}" if np.isfinite(least) else "not known"
        axes.set_title(rf"${symbol}$, least $r$ = {said}")
        axes.set_xlabel(r"exact Fisher block")
        axes.set_ylabel(r"$\Sigma_x \otimes \Sigma_{\nabla h}$")


def _missing(frame: pd.DataFrame) -> Iterator[str]:
    """Yield what is not drawn, where anything is."""
    for measure, symbol in SYMBOLS.items():
        drawn = claim.points(frame, measure)
        networks = int((frame["layer"] == NETWORK).sum())
        crosses = int((drawn["layer"] == NETWORK).sum())
        layers, circles = len(frame) - networks, len(drawn) - crosses
        left_out = [
            f"{num} of {of} {what}"
            for num, of, what in (
                (layers - circles, layers, "points"),
                (networks - crosses, networks, "crosses"),
            )
            if num
        ]
        if left_out:
            yield rf"${symbol}$ is without {' and '.join(left_out)}: {REASONS[measure]}."


def _draw(axes: Axes, points: pd.DataFrame, names: Sequence[str], common: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for index, name in enumerate(names):
        own = points[points["condition"] == name]
        color, marker = color_of(index), MARKERS[index % len(MARKERS)]
        bounds, own = own[own["bound"]], own[~own["bound"]]
        axes.plot(10 ** bounds["fisher"], 10 ** bounds["kfac"], **BOUND, color=color, markersize=5)
        layers, network = own[own["layer"] != NETWORK], own[own["layer"] == NETWORK]
        axes.scatter(
            10 ** layers["fisher"],
            10 ** layers["kfac"],
            s=9,
            marker=marker,
            facecolors="none",
            edgecolors=color,
            linewidths=0.6,
            label=name.removeprefix(common).removeprefix(", ") or name,
        )
        axes.scatter(
            10 ** network["fisher"], 10 ** network["kfac"], s=14, marker="x", color=color, lw=0.8
        )
    if len(points):
        both = 10 ** points[["fisher", "kfac"]].to_numpy()
        limits = both.min() / 1.3, both.max() * 1.3  # alike, so that the diagonal is equality
        axes.plot(limits, limits, color=GREY, linestyle="--", linewidth=0.8, zorder=0)
        axes.set(xlim=limits, ylim=limits)
        label_decades(axes.xaxis)
        label_decades(axes.yaxis)
    if points["bound"].any():
        axes.plot(
            [], [], **BOUND, color=GREY, markersize=5, label=f"{BOUND_LABEL} of one of the two"
        )
    axes.plot([], [], "x", color=GREY, markersize=4, label="the network as a whole")
