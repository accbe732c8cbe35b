"""Claim 1 as a picture: K-FAC's λ_max and κ_0.5 of every layer against those of the exact block."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from condexp.results.claims import validation as claim
from condexp.results.figures.curves import BOUND, BOUND_LABEL, color_of, label_decades
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.store.reader import Run
from condexp.store.schema.matrices import NETWORK

SYMBOLS = {"lambda_max": r"\lambda_{\max}", "kappa_0.5": r"\kappa_{0.5}"}
MARKERS = "osD^vP*"
NOTE = (
    "Least $r$: the smallest correlation of the logarithms, over the conditions (mean over seeds), "
    "without the crosses."
)
REASONS = {
    "lambda_max": "not finite or zero",
    "kappa_0.5": "infinite, or of a layer without a gradient for each weight",
}
NOTE_LETTERS = {Size.TEXT: 130, Size.COLUMN: 62}


def validation(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """λ_max and κ_0.5 of ``kfac`` against ``fisher``: a point a run, snapshot and layer.

    On the dashed line the two agree. Crosses are the network as a whole, open triangles pairs of
    which one κ is known from below only. κ_0.5 is shown of the
    layers that have a gradient for each weight. A panel's title holds the least of the conditions'
    correlations (mean over seeds, without the crosses).

    Args:
        runs: Runs that measured both matrices.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.
    """
    frame = claim.measure(runs)
    numbers = claim.correlations(frame)
    names = list(numbers["condition"])
    across = (1, 2) if size is Size.TEXT else (2, 1)
    panel = size.width / across[1]
    with style():
        figure = new_figure(size.width, across[0] * panel + 0.16 * (len(names) + 1) + 0.7)
        for axes, (measure, symbol) in zip(
            figure.subplots(*across).ravel(), SYMBOLS.items(), strict=True
        ):
            _draw(axes, claim.points(frame, measure), names)
            least = numbers[f"r of log {claim.SYMBOLS[measure]}"].min(skipna=False)
            said = f"{least:.3f}" if np.isfinite(least) else "not known"
            axes.set_title(rf"${symbol}$, least $r$ = {said}")
            axes.set_xlabel(rf"${symbol}$ of the exact Fisher block")
            axes.set_ylabel(rf"${symbol}$ of $\Sigma_x \otimes \Sigma_{{\nabla h}}$")
        handles, labels = figure.axes[-1].get_legend_handles_labels()  # of κ, which has bounds
        notes = [NOTE, *_missing(frame)]
        lines = textwrap.wrap(" ".join(notes), NOTE_LETTERS[size])
        title = {"title": "\n".join(lines), "title_fontsize": 6.5, "alignment": "left"}
        figure.legend(handles, labels, loc="outside lower center", ncols=1, **title)
        return save(figure, frame, folder, "validation")


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


def _draw(axes: Axes, points: pd.DataFrame, names: Sequence[str]) -> None:
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
            label=name,
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
