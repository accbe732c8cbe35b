"""Claim 4 as a picture: κ_p of K-FAC's matrix layer by layer, for each normalisation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from condexp.results.claims import conditioning as claim
from condexp.results.figures.curves import (
    BOUND,
    BOUND_LABEL,
    band_handles,
    color_of,
    draw_seeds,
    label_decades,
    mark_bounds,
    name_layers,
)
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.store.reader import Run

PANEL_HEIGHT = 2.4  # inches, with the names of layers
INFINITE_AT = 0.97  # height, as a share of the panel, of the marks for infinite values
OPEN: Any = {"markerfacecolor": "white", "linestyle": "", "markeredgewidth": 0.7}
HOLLOW: Any = {**OPEN, "marker": "o", "markersize": 3.5}
LOOKS: Mapping[str, Any] = {
    "few rows": {**HOLLOW, "label": "few rows: κ of the sample"},
    "bound": {**BOUND, "markersize": 3.5, "label": BOUND_LABEL},
    "infinite": {"marker": "^", "markersize": 3, "linestyle": "", "label": "at the top: κ = ∞"},
    "infinite for rows": {
        **OPEN,
        "marker": "v",
        "markersize": 3,
        "label": "at the top: too few rows",
    },
}
FEW_ROWS = {
    Size.TEXT: f"Few: under {claim.ROWS_PER_UNIT} rows for each unit of the layer's side. "
    "For more: analysis.source=probe with a large analysis.probe.size.",
    Size.COLUMN: f"Few: under {claim.ROWS_PER_UNIT} rows for each unit of the\nlayer's side. "
    "For more: analysis.source=probe\nwith a large analysis.probe.size.",
}


def conditioning(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """κ_p of every layer's ``kfac`` at the last snapshot: a panel a condition, a curve a norm.

    A picture of κ_0.5, which is judged, and one each of κ_0.2 and κ_0.8 where they were recorded.

    Curves are geometric means over seeds, bands their range. A full triangle at the top marks a
    layer whose κ is infinite in at least one seed, an open one at its place a seed's κ that is
    known from below only. A hollow point, or an open triangle at the top, is a layer measured with
    fewer than four rows for each unit of its side: its κ speaks of the sample, and the verdict
    leaves it out.

    Args:
        runs: Runs that measured ``kfac``.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn: ``conditioning``, and
        ``conditioning_kappa_0.2`` and ``conditioning_kappa_0.8`` where those were recorded.
    """
    frame = claim.measure(runs)
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    paths: list[Path] = []
    for p in last["p"].unique():
        name = "conditioning" if p == claim.P else f"conditioning_kappa_{p}"
        paths += _draw_fraction(last[last["p"] == p], p, folder, name, size)
    return tuple(paths)


def _draw_fraction(
    last: pd.DataFrame, p: float, folder: Path, name: str, size: Size
) -> tuple[Path, ...]:
    conditions = sorted(last["condition"].unique())
    norms = list(dict.fromkeys(sorted(last["norm"], key=_order)))
    few = not last["enough_rows"].all()
    num_cols = min(len(conditions), 2 if size is Size.TEXT else 1)
    num_rows = -(-len(conditions) // num_cols)
    with style():
        figure = new_figure(size.width, num_rows * PANEL_HEIGHT + 0.6)
        grid = figure.subplots(num_rows, num_cols, sharey=True, squeeze=False)
        marks: set[str] = set()
        for axes in grid.flat[len(conditions) :]:
            axes.set_axis_off()
        for axes, condition in zip(grid.flat, conditions, strict=False):
            axes.set_title(condition)
            axes.set_yscale("log")
            for index, norm in enumerate(norms):
                own = last[(last["condition"] == condition) & (last["norm"] == norm)]
                marks |= _draw(axes, own, index, above=len(norms) - 1 - index)
            name_layers(axes, last[last["condition"] == condition], size)
        for axes in grid.flat[: len(conditions)]:
            label_decades(axes.yaxis)
        for axes in grid[:, 0]:
            axes.set_ylabel(rf"$\kappa_{{{p}}}$ of $\Sigma_x \otimes \Sigma_{{\nabla h}}$")
        figure.legend(
            handles=_legend(norms, marks) + band_handles(last["seed"]),
            loc="outside lower center",
            ncols=4 if size is Size.TEXT else 2,
            title=(FEW_ROWS[size] if few else ""),
            title_fontsize=6.5,
        )
        return save(figure, last, folder, name)


def _legend(norms: Sequence[str], marks: set[str]) -> list[Line2D]:
    lines = [
        Line2D([], [], color=color_of(i), label=f"norm={norm}") for i, norm in enumerate(norms)
    ]
    return lines + [
        Line2D([], [], color=GREY, **look) for mark, look in LOOKS.items() if mark in marks
    ]


def _draw(axes: Axes, own: pd.DataFrame, index: int, *, above: int) -> set[str]:
    # Draws one normalisation, and says which marks the legend has to explain.
    color, marks = color_of(index), set()
    values, highs, enough = (
        own.pivot(index="index", columns="seed", values=name)
        for name in ("kappa", "kappa_high", "enough_rows")
    )
    draw_seeds(axes, values, color, above=above)
    if mark_bounds(axes, values, highs, color):
        marks.add("bound")
    known = enough.fillna(True).astype(bool).all(axis=1)
    finite = values.where(np.isfinite(values) & (values > 0))
    hollow = np.log10(finite).mean(axis=1)[~known].dropna()
    if len(hollow):
        axes.plot(hollow.index, 10**hollow, **HOLLOW, color=color)
        marks.add("few rows")
    for mark, layers in (("infinite", known), ("infinite for rows", ~known)):
        chosen = (values == np.inf).any(axis=1) & layers
        if chosen.any():
            beside = values.index[chosen] + 0.12 * index  # those of other norms
            top = [INFINITE_AT] * len(beside)
            look = {**LOOKS[mark], "label": None, "clip_on": False}
            axes.plot(beside, top, **look, color=color, transform=axes.get_xaxis_transform())
            marks.add(mark)
    return marks


def _order(norm: str) -> tuple[int, str]:
    known = ("none", "batch", "center", "scale")
    return (known.index(norm) if norm in known else len(known), norm)
