"""Claim 3: scaled hidden weights under BatchNorm: a plateau, and its end when they are released."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from condexp.results.claims.domination import measure
from condexp.results.figures.curves import band_handles, color_of, draw_seeds, scale_logarithmically
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.results.figures.ticks import step_locator
from condexp.store.reader import Run

PANELS = {
    "train_loss": "training loss",
    "domination": r"$\sigma_{\max}(\partial L/\partial W)\,/\,\sigma_{\max}(W)$",
    "effective_lr": r"effective lr $\eta\,/\,\Vert w\Vert^2$",
}
PANEL_HEIGHT = 1.9  # inches


def domination(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """Loss, median domination and median effective learning rate over training, by factor.

    A row of panels a condition, a column of them at column width. Lines are geometric means over
    seeds, bands their range; a dashed line marks the release, the step at which the weights are
    divided by the factor again. Curves of smaller factors are wider, so that they show beneath
    others.

    Args:
        runs: Runs over ``trainer.rescale.factor`` and seeds.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, PNG, SVG and CSV of what was drawn.
    """
    frame = measure(runs)
    conditions = [own for _, own in frame.groupby("condition")]
    shape = (len(conditions), len(PANELS))
    if size is Size.COLUMN:
        shape = shape[::-1]
    with style():
        figure = new_figure(size.width, PANEL_HEIGHT * shape[0] + 0.5)
        grid = figure.subplots(*shape, sharex="row" if size is Size.TEXT else "col", squeeze=False)
        by_condition = grid if size is Size.TEXT else grid.T
        for index, (panels, own) in enumerate(zip(by_condition, conditions, strict=True)):
            for axes, (column, label) in zip(panels, PANELS.items(), strict=True):
                _draw(axes, own, column)
                if size is Size.TEXT or index == 0:
                    axes.set_ylabel(label)
            for axes in panels if size is Size.TEXT else panels[-1:]:
                axes.set_xlabel("step")
            middle = len(panels) // 2 if size is Size.TEXT else 0
            lines = ", " if size is Size.TEXT else ",\n"
            panels[middle].set_title(str(own["condition"].iloc[0]).replace(", ", lines))
        handles, _ = grid[0, 0].get_legend_handles_labels()
        ncols = 5 if size is Size.TEXT else 2
        handles += band_handles(frame["seed"])
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
        return save(figure, frame, folder, "domination")


def _draw(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    factors = sorted(frame["factor"].unique())
    release = frame["release"].min()
    for factor, own in frame.groupby("factor"):
        color = color_of(factors.index(factor))
        values = own.pivot(index="step", columns="seed", values=column).dropna(how="all")
        # The release makes weights and gradients jump, so no line leads across it; the loss does
        # not jump, and is evaluated at that step before it.
        after = (values.index >= own["release"].min()) & (column != "train_loss")
        above = len(factors) - 1 - factors.index(factor)
        draw_seeds(axes, values[~after], color, rf"$\alpha = {factor:g}$", above=above)
        draw_seeds(axes, values[after], color, above=above)
    if not pd.isna(release):
        label = r"release: weights $/\,\alpha$"
        axes.axvline(release, color=GREY, linestyle="--", linewidth=0.8, label=label)
    scale_logarithmically(axes)
    axes.xaxis.set_major_locator(step_locator(5))
