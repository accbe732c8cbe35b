"""Claim 5 as a picture: the last linear layer's two factors over training, by depth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from condexp.results.claims import last_layer as claim
from condexp.results.figures.curves import (
    BOUND,
    BOUND_LABEL,
    band_handles,
    color_of,
    draw_fan,
    draw_seeds,
    fan_colors,
    label_decades,
    mark_bounds,
)
from condexp.results.figures.style import BLACK, Size, new_figure, save, style
from condexp.results.figures.ticks import step_locator
from condexp.store.reader import Run

CURVES = {
    "input_lambda_max": r"$\lambda_{\max}(\Sigma_x)$",
    "input_kappa_0.5": r"$\kappa_{0.5}(\Sigma_x)$",
    "grad_output_lambda_max": r"$\lambda_{\max}(\Sigma_{\nabla h})$",
    "grad_output_kappa_0.5": r"$\kappa_{0.5}(\Sigma_{\nabla h})$",
}
SPECTRA = {"input": r"$\lambda(\Sigma_x)$", "grad_output": r"$\lambda(\Sigma_{\nabla h})$"}
NUM_CURVES = {Size.TEXT: 4, Size.COLUMN: 2}  # panels in a row
NUM_SPECTRA = {Size.TEXT: 8, Size.COLUMN: 4}
CURVE_HEIGHT, SPECTRUM_HEIGHT, TITLE_HEIGHT = 1.6, 1.3, 0.6  # inches
PAGE_HEIGHT, LEAST_SHRUNK = 9.0, 0.8
DECADES = 10  # of eigenvalues below the largest that are shown: what is further down is rounding


def last_layer(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """λ_max and κ_0.5 of the last linear layer's Σ_x and Σ_∇h, and its spectra, over training.

    For each network first the geometric means over seeds with their range, a colour a condition
    (depth), solid with LastBN and dashed without, open triangles where κ is a lower bound; then
    every eigenvalue of the first seed of each condition, from the largest (dark) to the smallest
    (light). Networks that there is no room for on a page of 9 in are on further ones,
    ``last_layer-2`` and so on.

    Args:
        runs: Runs that measured both matrices and kept their spectra.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn, page by page.
    """
    order = ["network", "depth", "condition", "last_bn", "seed", "step"]
    frame = claim.measure(runs).sort_values(order)
    frame["family"] = frame["condition"].str.partition(", ")[0]
    spectra = _read_spectra(runs, frame)
    written: list[Path] = []
    for number, families in enumerate(_pages(frame, size), start=1):
        heights = [sum(_heights(own, size)) for own in families]
        with style():
            figure = new_figure(size.width, min(PAGE_HEIGHT, sum(heights)))
            shape = (len(families), 1)
            parts = figure.subfigures(*shape, squeeze=False, height_ratios=heights).ravel()
            for part, own in zip(parts, families, strict=True):
                _draw_family(part, own, spectra, size)
            page = pd.concat(families)
            shown = spectra[spectra["condition"].isin(page["condition"])]
            stem = "last_layer" if number == 1 else f"last_layer-{number}"
            written += save(figure, _data(page, shown), folder, stem)
    return tuple(written)


def _pages(frame: pd.DataFrame, size: Size) -> list[list[pd.DataFrame]]:
    """Divide the networks among pages.

    Returns:
        Those of each page, as many as leaves something to see.
    """
    pages: list[list[pd.DataFrame]] = []
    left = 0.0
    for _, own in frame.groupby("family", sort=False):
        height = LEAST_SHRUNK * sum(_heights(own, size))
        if not pages or height > left:
            pages.append([])
            left = PAGE_HEIGHT
        pages[-1].append(own)
        left -= height
    return pages


def _read_spectra(runs: Sequence[Run], frame: pd.DataFrame) -> pd.DataFrame:
    """Return every eigenvalue of the first seed of each condition, plain and with LastBN."""
    by_path = {str(run.path): run for run in runs}
    parts = []
    for _, own in frame.groupby(["condition", "last_bn"], sort=False):
        first = own.iloc[0]
        for matrix in SPECTRA:
            values = by_path[first["run"]].spectrum(matrix, first["layer"])
            part = values.to_series().rename("value").reset_index()
            for name in ("condition", "last_bn", "seed"):
                part[name] = first[name]
            parts.append(part.assign(panel=f"{matrix}_eigenvalue"))
    return pd.concat(parts, ignore_index=True)


def _nets(own: pd.DataFrame) -> list[tuple[str, bool]]:
    return list(dict.fromkeys(zip(own["condition"], own["last_bn"], strict=True)))


def _shown(own: pd.DataFrame, size: Size) -> list[tuple[str, bool]]:
    """Return the nets whose spectra are drawn: in a column, of the first and last condition."""
    nets = _nets(own)
    if size is Size.TEXT or len(nets) <= NUM_SPECTRA[size]:
        return nets
    ends = {nets[0][0], nets[-1][0]}
    return [net for net in nets if net[0] in ends]


def _draw_family(part: SubFigure, own: pd.DataFrame, spectra: pd.DataFrame, size: Size) -> None:
    part.suptitle(own["family"].iloc[0], fontsize=8.5)
    heights = _heights(own, size)
    curves, below = part.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
    _draw_curves(curves, own, size)
    _draw_spectra(below, own, spectra[spectra["condition"].isin(own["condition"])], size)


def _heights(own: pd.DataFrame, size: Size) -> tuple[float, float]:
    """Return the heights of a network's curves and spectra."""
    curve_rows = -(-len(CURVES) // NUM_CURVES[size])
    spectrum_rows = -(-len(_shown(own, size)) // NUM_SPECTRA[size]) * len(SPECTRA)
    return curve_rows * CURVE_HEIGHT + TITLE_HEIGHT, spectrum_rows * SPECTRUM_HEIGHT + 0.6


def _draw_spectra(figure: SubFigure, own: pd.DataFrame, spectra: pd.DataFrame, size: Size) -> None:
    family, nets = own["family"].iloc[0], _shown(own, size)
    num_cols = min(NUM_SPECTRA[size], len(nets))
    num_rows = -(-len(nets) // num_cols) * len(SPECTRA)
    grid = figure.subplots(num_rows, num_cols, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (matrix, symbol) in enumerate(SPECTRA.items()):
        chosen = spectra[spectra["panel"] == f"{matrix}_eigenvalue"]
        positive = chosen["value"][np.isfinite(chosen["value"]) & (chosen["value"] > 0)]
        high = positive.max()
        limits = max(positive.min(), high / 10**DECADES) / 2, high * 2
        for place, (condition, last_bn) in enumerate(nets):
            axes = grid[place // num_cols * len(SPECTRA) + row, place % num_cols]
            axes.set_axis_on()
            net = chosen[(chosen["condition"] == condition) & (chosen["last_bn"] == last_bn)]
            _draw_spectrum(axes, net.pivot(index="step", columns="eig", values="value"))
            if len(positive):
                axes.set_ylim(limits)
                label_decades(axes.yaxis)
            if row == 0:
                axes.set_title(
                    f"{_label(condition, family)}\n{_net(last_bn)}".strip(), fontsize=6.5
                )
            if place % num_cols == 0:
                axes.set_ylabel(symbol)
            else:
                axes.tick_params(labelleft=False)
            axes.tick_params(labelbottom=row == len(SPECTRA) - 1)
            axes.set_xlabel("step" if row == len(SPECTRA) - 1 else "")
    colors = fan_colors(2)
    ends = (r"$\lambda_1$, the largest", r"$\lambda_d$, the smallest")
    lines = [Line2D([], [], color=c, label=end) for c, end in zip(colors, ends, strict=True)]
    all_nets = "" if nets == _nets(own) else "; all conditions are in the CSV"
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=2,
        title=f"one seed's eigenvalues, those above the noise floor{all_nets}",
        title_fontsize=6.5,
    )


def _draw_curves(figure: SubFigure, own: pd.DataFrame, size: Size) -> None:
    num_cols = NUM_CURVES[size]
    family, conditions = own["family"].iloc[0], list(dict.fromkeys(own["condition"]))
    grid = figure.subplots(-(-len(CURVES) // num_cols), num_cols, squeeze=False)
    bounds = False
    for axes, (name, symbol) in zip(grid.flat, CURVES.items(), strict=True):
        axes.set_yscale("log")
        for (condition, last_bn), net in own.groupby(["condition", "last_bn"], sort=False):
            values = net.pivot(index="step", columns="seed", values=name)
            color = color_of(conditions.index(condition))
            draw_seeds(axes, values, color, index=0 if last_bn else 1)
            if (end := name.replace("kappa", "kappa_high")) != name:
                highs = net.pivot(index="step", columns="seed", values=end)
                bounds |= mark_bounds(axes, values, highs, color)
        axes.set_title(symbol)
        _label_steps(axes, 4)
        label_decades(axes.yaxis)
    colors = [
        Line2D([], [], color=color_of(i), label=_label(condition, family))
        for i, condition in enumerate(conditions)
        if condition != family  # the only one has the network's name, which stands above
    ]
    dashes: list[Artist] = [
        Line2D([], [], color=BLACK, linestyle="-" if last_bn else "--", label=_net(last_bn))
        for last_bn in (True, False)
        if (own["last_bn"] == last_bn).any()
    ]
    dashes += band_handles(own["seed"])
    if bounds:
        dashes.append(Line2D([], [], **BOUND, color=BLACK, markersize=3.5, label=BOUND_LABEL))
    figure.legend(handles=[*colors, *dashes], loc="outside lower center", ncols=3 * num_cols // 2)


def _draw_spectrum(axes: Axes, values: pd.DataFrame) -> None:
    """Draw eigenvalues ``[steps, eig]``; what is zero has no place on the axis."""
    axes.set_yscale("log")
    draw_fan(axes, values, width=0.5)
    axes.set_xlim(values.index.min() - 0.5, values.index.max() + 0.5)
    _label_steps(axes, 2)


def _label_steps(axes: Axes, num: int) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(step_locator(num))


def _label(condition: str, family: str) -> str:
    return condition.removeprefix(family).removeprefix(", model.").removeprefix(", ")


def _net(last_bn: bool) -> str:
    return "LastBN" if last_bn else "plain"


def _data(frame: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    names = ["condition", "last_bn", "seed", "step"]
    curves = []
    for name in CURVES:
        ends = {end: name.replace("kappa", f"kappa_{end}") for end in ("low", "high")}
        own = {end: frame[found] for end, found in ends.items() if found != name}
        curves.append(frame[names].assign(panel=name, value=frame[name], **own))
    data = pd.concat([*curves, spectra], ignore_index=True)
    return data[["panel", *names, "eig", "value", "low", "high"]]
