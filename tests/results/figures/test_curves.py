"""Curves with a band over seeds."""

import math

import numpy as np
import pandas as pd
import pytest

from condexp.results.figures.curves import (
    COLORS,
    band_handles,
    color_of,
    draw_seeds,
    legend_below,
    scale_logarithmically,
)
from condexp.results.figures.style import BLUE, GREY, new_figure, style


@pytest.mark.parametrize(("logarithmic", "mean"), [(True, [2.0, 3.0]), (False, [2.5, 3.0])])
def test_mean_and_range_of_the_seeds_that_have_a_step(logarithmic: bool, mean: list[float]) -> None:
    values = pd.DataFrame({1: [1.0, math.inf, math.nan], 2: [4.0, 3.0, math.nan]}, index=[0, 5, 9])
    with style():
        axes = new_figure(3, 2).subplots()
        draw_seeds(axes, values, COLORS[0], "curve", logarithmic=logarithmic)
    (line,), (band, _) = axes.lines, axes.collections
    assert np.asarray(line.get_xdata()).tolist() == [0, 5]
    np.testing.assert_allclose(np.asarray(line.get_ydata()), mean)
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (1, 4)


def test_what_is_not_positive_has_no_place_on_a_logarithmic_axis() -> None:
    with style():
        axes = new_figure(3, 2).subplots()
        draw_seeds(axes, pd.DataFrame({1: [0.0, -1.0]}), COLORS[0])
        assert not axes.lines
        draw_seeds(axes, pd.DataFrame({1: [0.0, 2.0]}), COLORS[0])
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [2.0]
    assert not axes.collections  # one seed has no range


def test_more_curves_than_colours() -> None:
    assert len(set(COLORS)) == len(COLORS) == 7
    assert color_of(6) == COLORS[6]
    assert color_of(7) == GREY


@pytest.mark.parametrize(
    ("highest", "labels"), [(5.0, {"1", "2", "5"}), (1e9, {"$\\mathdefault{10^{0}}$"})]
)
def test_ticks_suit_the_range(highest: float, labels: set[str]) -> None:
    with style():
        axes = new_figure(3, 2).subplots()
        axes.plot([0, 1], [1, highest])
        scale_logarithmically(axes)
        axes.figure.canvas.draw()
        shown = {label.get_text() for label in axes.get_yticklabels()}
    assert labels <= shown
    assert len(shown) < 12


@pytest.mark.parametrize("low", [1.0, 1.7, 2.1, 6.0, 0.93])
@pytest.mark.parametrize("factor", [1.02, 1.3, 2.0, 4.0, 9.0, 30.0, 300.0, 1e4, 1e9])
def test_a_logarithmic_axis_has_two_labelled_ticks_at_least(low: float, factor: float) -> None:
    with style():
        axes = new_figure(3, 2).subplots()
        axes.plot([0, 1], [low, low * factor])
        scale_logarithmically(axes)
        axes.figure.canvas.draw()
    bottom, top = axes.get_ylim()
    labels = [
        label.get_text()
        for label, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
        if bottom <= place <= top
    ]
    assert len([label for label in labels if label]) >= 2
    assert len(set(labels)) == len(labels)


def test_a_curve_shows_beside_the_one_that_covers_it() -> None:
    axes = new_figure(3, 2).subplots()
    for above in (1, 0):
        draw_seeds(axes, pd.DataFrame({1: [1.0, 2.0]}), BLUE, above=above)
    below, over = axes.lines
    assert below.get_linewidth() > over.get_linewidth()
    assert below.get_markersize() > over.get_markersize()


def test_a_step_without_a_finite_value_breaks_line_and_band_and_its_neighbours_stay() -> None:
    lost = [1.0, 2.0, math.inf, 4.0, math.inf, *[3.0] * 30]
    values = pd.DataFrame({1: lost, 2: [2 * value for value in lost]})
    with style():
        axes = new_figure(3, 2).subplots()
        draw_seeds(axes, values, BLUE)
    (line,) = axes.lines
    shown = np.asarray(line.get_ydata())
    assert np.flatnonzero(np.isnan(shown)).tolist() == [2, 4]
    assert line.get_markevery() == [3]  # no line leads to it
    band, lone = axes.collections
    assert len(band.get_paths()) == 2 + 1  # of one point has no width, and its own mark
    ((x, low), (_, high)) = np.asarray(lone.get_paths()[0].vertices)
    assert (x, low, high) == (3, 4, 8)


def test_a_legend_below_a_panel_covers_nothing() -> None:
    with style():
        figure = new_figure(3.3, 2.5)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="a curve")
        axes.set_xlabel("step")
        legend_below(axes, ncols=1)
        figure.draw_without_rendering()
    legend = axes.get_legend()
    assert legend is not None
    box, label = legend.get_window_extent(), axes.xaxis.label.get_window_extent()
    assert box.y1 <= label.y0 < axes.get_window_extent().y0
    assert box.y0 >= 0


def test_bands_are_explained_where_there_are_some() -> None:
    assert band_handles(pd.Series([1, 1])) == []
    (handle,) = band_handles(pd.Series([1, 2]))
    assert handle.get_label() == "range over seeds"
