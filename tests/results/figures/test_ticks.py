"""Labels of ticks have room beside each other, in a panel of any size and a range of any width."""

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from condexp.results.figures.curves import scale_logarithmically
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import new_figure, style
from condexp.results.figures.ticks import step_locator


def labels(axes: Axes, which: Literal["x", "y"]) -> list[Bbox]:
    """Return where the labels of the ticks within the panel are."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    return [
        label.get_window_extent()
        for label, place in zip(axis.get_ticklabels(), axis.get_majorticklocs(), strict=True)
        if low <= place <= high and label.get_text()
    ]


def apart(boxes: list[Bbox]) -> bool:
    return not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize("height", [0.6, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("low", [0.00171, 0.93, 2.1, 6.0])
@pytest.mark.parametrize("factor", [1.02, 1.3, 3.0, 9.0, 30.0, 200.0, 1e3, 1e9, 1e40])
def test_on_a_logarithmic_axis(height: float, low: float, factor: float) -> None:
    with style():
        axes = new_figure(1.6, height).subplots()
        axes.plot([0, 1], [low, low * factor])
        scale_logarithmically(axes)
        boxes = labels(axes, "y")
    assert len(boxes) >= 2
    assert apart(boxes) or len(boxes) == 2  # of a panel too low for two, both are there


@pytest.mark.parametrize("width", [0.9, 1.2, 3.3, 7.2])
@pytest.mark.parametrize("last", [1, 22, 165, 5_000, 60_000, 1_000_000])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_of_training_steps(width: float, last: int, logarithmic: bool) -> None:
    steps = np.geomspace(1, last + 1, 12) - 1 if logarithmic else np.linspace(0, last, 12)
    with style():
        axes = new_figure(width, 1.0).subplots()
        axes.set_yticks([])
        StepAxis.of(np.unique(steps.round()), float(last)).apply(axes)
        boxes = labels(axes, "x")
        assert boxes
        assert apart(boxes)
        axes.set_xscale("linear")
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(step_locator(6))
        assert apart(labels(axes, "x"))
