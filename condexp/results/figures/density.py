"""The spectral density of a Hessian or Gauss–Newton matrix: of the network, or of a layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.errors import InputError, choose
from condexp.results.figures.curves import COLORS, LINES, label_decades, legend_below
from condexp.results.figures.style import Size, file_stem, new_figure, save, style
from condexp.results.run_view import headline
from condexp.store.reader import Run
from condexp.store.schema.matrices import NETWORK

HEIGHT = 3.0  # inches
WIDTH = 0.03  # of the Gaussian, in units of the largest modulus
PLACES = 1024
LEAST = 1e-6  # density, per largest modulus, below which nothing is drawn
Numbers = NDArray[np.float64]


def density(
    runs: Sequence[Run],
    folder: Path,
    *,
    size: Size,
    layer: str = NETWORK,
    matrix: str = "hessian",
) -> tuple[Path, ...]:
    """Draw the density of the eigenvalues at three snapshots, smoothed by 3 % of the largest.

    Args:
        runs: The run alone.
        folder: Where to write.
        size: How wide it is printed.
        layer: The layer whose block is drawn; the network by default.
        matrix: ``hessian`` or ``ggn``.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.

    Raises:
        InputError: If the matrix was not measured, or not of this layer.
    """
    (run,) = runs
    if not run.curvature:
        raise InputError(
            f"{run.path}: no spectral density was measured: it is with hessian or ggn in "
            "analysis.matrices, and analysis.source as it is."
        )
    choose("matrix with a density", matrix, run.curvature)
    table = run.network()
    if layer != NETWORK:
        choose("layer", layer, run.layers)
        table = run.measures().sel(layer=layer)
        if f"{matrix}_density" not in table:
            raise InputError(
                f"{run.path}: {matrix} was measured of the network alone, for "
                "analysis.layer_blocks=false."
            )
    steps = table["step"].to_numpy()
    points, masses = table["point"].to_numpy(), table[f"{matrix}_density"].to_numpy()
    scales = table[f"{matrix}_density_scale"].to_numpy()
    frames = []
    with style():
        figure = new_figure(size.width, HEIGHT)
        axes = figure.subplots()
        for number, row in enumerate(sorted({0, len(steps) // 2, len(steps) - 1} - {-1})):
            at, height = _smoothed(points * scales[row], masses[row], WIDTH * scales[row])
            look = {"color": COLORS[number], "linestyle": LINES[number]}
            axes.plot(at, height, label=f"step {steps[row]}", **look)
            frames.append(pd.DataFrame({"step": steps[row], "eigenvalue": at, "density": height}))
        axes.set(yscale="log", xlabel=r"$\lambda$", ylabel=r"density $\rho(\lambda)$")
        what = "the network" if layer == NETWORK else layer
        axes.set_title(f"{headline(run)}: {matrix} of {what}", fontsize=8.5)
        axes.set_ylim(bottom=LEAST / float(np.nanmax(scales, initial=0.0) or 1.0))
        label_decades(axes.yaxis)
        legend_below(axes, ncols=3)
        data = pd.concat(frames) if frames else pd.DataFrame()
        return save(figure, data, folder, file_stem("density", layer, matrix))


def _smoothed(at: Numbers, masses: Numbers, width: float) -> tuple[Numbers, Numbers]:
    """Return places over the range of the eigenvalues, and the density smoothed by a Gaussian."""
    there = at[masses > 0]
    if not len(there) or not width > 0:  # nothing finite, or a matrix of zeros
        return np.full(1, np.nan), np.full(1, np.nan)
    places = np.linspace(there.min() - 3 * width, there.max() + 3 * width, PLACES)
    bumps = np.exp(-0.5 * ((places[:, None] - at) / width) ** 2) / (np.sqrt(2 * np.pi) * width)
    return places, bumps @ masses
