"""How close approximations of the Fisher matrix are to it: by layer, and over training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from condexp.analysis.vocabulary import CLOSENESS, NETWORK_CLOSENESS
from condexp.results.claims.conditions import describe
from condexp.results.claims.requires import require
from condexp.results.config_keys import lookup
from condexp.results.figures.curves import LINES, color_of, draw_seeds, name_layers
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.results.layer_measures import LayerMeasures
from condexp.store.reader import Run
from condexp.store.schema.matrices import NETWORK

FACTOR = "model.norm"
OPTION = "ekfac and fisher in analysis.matrices"
PANEL_HEIGHT = 2.1  # inches
DRAWN: Mapping[str, str] = {
    "kfac_relative_error": "K-FAC, beside the layer's block",
    "ekfac_relative_error": "EKFAC, likewise",
    "block_diagonal_relative_error": "all blocks, beside the network",
}


def closeness(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """‖F − A‖/‖F‖ of K-FAC, EKFAC and the block diagonal, a row of panels a condition.

    On the left every layer at the last snapshot; on the right, over training, the median over the
    layers, and the network. Curves are means over seeds, bands their range; a colour a
    normalisation, a line an approximation. The CSV has the cosines, too.

    Args:
        runs: Runs that measured ``ekfac`` and ``fisher``.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.
    """
    frame = measure(runs)
    conditions = list(dict.fromkeys(frame["condition"]))
    norms = sorted(frame["norm"].unique(), key=lambda norm: (norm != "none", norm))
    across = 2 if size is Size.TEXT else 1
    down = 2 * len(conditions) // across
    with style():
        figure = new_figure(size.width, down * PANEL_HEIGHT + 0.6)
        panels = iter(figure.subplots(down, across, squeeze=False).flat)
        for condition in conditions:
            own = frame[frame["condition"] == condition]
            _draw_layers(next(panels), own, norms, size)
            _draw_training(next(panels), own, norms)
        for axes in figure.axes[::across]:
            axes.set_ylabel("relative error")
        for axes, title in zip(figure.axes[::2], conditions, strict=True):
            axes.set_title(title, loc="left")
        lines = [Line2D([], [], color=color_of(i), label=f"norm={n}") for i, n in enumerate(norms)]
        lines += [
            Line2D([], [], color=GREY, linestyle=line, label=label)
            for line, label in zip(LINES, DRAWN.values(), strict=False)
        ]
        figure.legend(
            handles=lines, loc="outside lower center", ncols=3 if size is Size.TEXT else 1
        )
        return save(figure, frame, folder, "closeness")


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read how close the approximations of each run are.

    Args:
        runs: Runs that measured ``ekfac`` and ``fisher``.

    Returns:
        One row a run, snapshot, layer and measure: ``run``, ``condition``, ``seed``, ``state``,
        ``norm``, ``step``, ``layer`` (``network`` for all together), ``index`` (of the layer, from
        0), ``measure`` and ``value``.
    """
    parts = []
    for run, described in zip(runs, describe(runs, [FACTOR]), strict=True):
        about = {
            "run": str(run.path),
            **described,
            "norm": str(lookup(run.config, FACTOR) or "none"),
        }
        both = (
            (require(run, CLOSENESS, OPTION), CLOSENESS),
            (LayerMeasures.read_network(run), NETWORK_CLOSENESS),
        )
        for measures, names in both:
            num_steps, num = len(measures.steps), len(measures.layers)
            index = np.arange(num) if names is CLOSENESS else np.full(num, -1)
            parts += [
                pd.DataFrame({
                    **about,
                    "step": np.repeat(measures.steps, num),
                    "layer": list(measures.layers) * num_steps,
                    "index": np.tile(index, num_steps),
                    "measure": name,
                    "value": measures.values(name).ravel(),
                })
                for name in names
            ]
    return pd.concat(parts, ignore_index=True)


def _draw_layers(axes: Axes, own: pd.DataFrame, norms: Sequence[str], size: Size) -> None:
    last = own[own["step"] == own.groupby("run")["step"].transform("max")]
    layers = last[last["layer"] != NETWORK]
    _draw(axes, layers, "index", norms)
    name_layers(axes, layers, size)


def _draw_training(axes: Axes, own: pd.DataFrame, norms: Sequence[str]) -> None:
    _draw(axes, own, "step", norms)
    axes.set_xlabel("step; the median over layers, and the network")
    steps = np.unique(own["step"].to_numpy(float))
    StepAxis.of(steps, float(steps.max())).apply(axes)


def _draw(axes: Axes, own: pd.DataFrame, along: str, norms: Sequence[str]) -> None:
    for color, norm in enumerate(norms):
        for line, name in enumerate(DRAWN):
            chosen = own[(own["norm"] == norm) & (own["measure"] == name)]
            values = chosen.pivot_table(
                index=along, columns="seed", values="value", aggfunc="median", dropna=False
            )
            draw_seeds(axes, values, color_of(color), index=line, logarithmic=False)
    axes.set_ylim(bottom=0)
