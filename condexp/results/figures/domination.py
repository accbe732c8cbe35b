"""Claim 3: scaled hidden weights under BatchNorm: a plateau, and its end when they are released."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from condexp.results.claims.domination import measure
from condexp.results.figures.curves import color_of, draw_seeds, scale_logarithmically
from condexp.results.figures.style import GREY, Size, new_figure, save, style
from condexp.store.reader import Run

PANELS = {
    "train_loss": "training loss",
    "domination": r"$\sigma_{\max}(\partial L/\partial W)\,/\,\sigma_{\max}(W)$",
    "effective_lr": r"effective lr $\eta\,/\,\Vert w\Vert^2$",
}


def domination(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """Loss, median domination and median effective learning rate over training, by factor.

    Lines are geometric means over seeds, bands their range; a dashed line marks the release, the
    step at which the weights are divided by the factor again. Curves of smaller factors are wider,
    so that they show beneath others.

    Args:
        runs: Runs over ``trainer.rescale.factor`` and seeds.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.
    """
    frame = measure(runs)
    shape, height = ((3, 1), 5.2) if size is Size.COLUMN else ((1, 3), 2.6)
    with style():
        figure = new_figure(size.width, height)
        figure.suptitle("; ".join(frame["condition"].unique()), fontsize=8.5)
        panels = figure.subplots(*shape, sharex=True, squeeze=False).ravel()
        for axes, (column, label) in zip(panels, PANELS.items(), strict=True):
            _draw(axes, frame, column)
            axes.set_ylabel(label)
        for axes in panels if size is Size.TEXT else panels[-1:]:
            axes.set_xlabel("step")
        handles, labels = panels[0].get_legend_handles_labels()
        ncols = 5 if size is Size.TEXT else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
        return save(figure, frame, folder, "domination")


def _draw(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    factors = sorted(frame["factor"].unique())
    for factor, own in frame.groupby("factor"):
        color = color_of(factors.index(factor))
        for index, (_, alike) in enumerate(own.groupby("condition")):
            values = alike.pivot(index="step", columns="seed", values=column).dropna(how="all")
            # The release makes weights and gradients jump, so no line leads across it; the loss
            # does not jump, and is evaluated at that step before it.
            after = (values.index >= alike["release"].min()) & (column != "train_loss")
            label = "_" if index else rf"$\alpha = {factor:g}$"  # an underscore: not in the legend
            above = len(factors) - 1 - factors.index(factor)
            draw_seeds(axes, values[~after], color, label, index=index, above=above)
            draw_seeds(axes, values[after], color, index=index, above=above)
    for index, release in enumerate(frame["release"].dropna().unique()):
        label = "_" if index else r"release: weights $/\,\alpha$"
        axes.axvline(release, color=GREY, linestyle="--", linewidth=0.8, label=label)
    scale_logarithmically(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
