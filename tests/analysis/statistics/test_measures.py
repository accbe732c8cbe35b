"""Measures of weights, gradients and units against closed forms."""

import math

import pytest
import torch
from torch import nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.measures import (
    UnitExtremes,
    domination,
    effective_lr,
    mean_fraction,
)
from tests import cases

CROSS_ENTROPY = nn.CrossEntropyLoss()


def singular(*values: float) -> Spectrum:
    return Spectrum.from_factor(torch.diag(torch.tensor(values)), dtype=torch.float64)


def test_domination_is_the_ratio_of_the_largest_singular_values() -> None:
    assert math.isclose(domination(singular(3.0, 1.0), singular(0.5, 4.0)), 0.75)
    assert domination(singular(0.0, 0.0), singular(0.5, 4.0)) == 0
    assert math.isnan(domination(singular(3.0, 1.0), singular(0.0, 0.0)))
    assert math.isnan(domination(singular(math.nan, 1.0), singular(1.0, 1.0)))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 0.0], [0.0, 2.0], [2.0, 2.0]], 0.1 / 4),
        ([[1.0, 0.0], [0.0, 2.0]], (0.1 + 0.025) / 2),
        ([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], math.inf),
    ],
)
def test_effective_lr_is_the_median_over_rows(rows: list[list[float]], expected: float) -> None:
    assert math.isclose(effective_lr(torch.tensor(rows), 0.1), expected, rel_tol=1e-6)
    assert math.isnan(effective_lr(torch.tensor(rows), None))


def test_effective_lr_of_a_convolution_takes_a_filter_as_a_row() -> None:
    weight = torch.ones(2, 3, 2, 2)
    assert math.isclose(effective_lr(weight, 1.0), 1 / 12, rel_tol=1e-6)  # norms in float32


def test_norms_are_accumulated_in_float64() -> None:
    assert math.isclose(frobenius_norm(torch.full((10_000,), 0.1)) ** 2, 100, rel_tol=1e-7)


def test_mean_fraction_of_constant_centered_and_zero_inputs() -> None:
    for rows, expected in [
        (torch.full((5, 2), 3.0), 1.0),
        (torch.tensor([[1.0, -2.0], [-1.0, 2.0]]), 0.0),
    ]:
        power = float(rows.square().sum(1).mean())
        assert math.isclose(mean_fraction(rows.mean(0), power), expected, abs_tol=1e-12)
    assert math.isnan(mean_fraction(torch.zeros(2), 0.0))


def test_a_unit_that_is_never_positive_is_not_dead() -> None:
    """Unless it is 0: an input that no rectifier precedes may be negative."""
    units = UnitExtremes()
    units.add(torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([0.0, 0.0, 1.0]))
    assert math.isclose(units.dead_fraction(), 1 / 3)
    assert math.isclose(units.full_fraction(), 1 / 3)


def hand_made() -> tuple[nn.Module, torch.Tensor]:
    """Rectified units: one dead, one full, one in between, one 0 in the first half only."""
    layer = nn.Linear(1, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
        layer.bias.copy_(torch.tensor([-1.0, 1.0, 0.0, -2.0]))
    inputs = torch.tensor([[-1.0], [1.0], [3.0], [4.0]], dtype=torch.float64)
    return nn.Sequential(layer, nn.ReLU(inplace=True), cases.randomised(nn.Linear(4, 3))), inputs


def test_dead_and_full_units_are_those_of_the_input() -> None:
    model, inputs = hand_made()
    record = condexp.analyze(model, CROSS_ENTROPY, inputs, cases.labels(4, 3))["2"]
    assert (record.dead_fraction, record.full_fraction) == (0.25, 0.25)
    first = condexp.analyze(model, CROSS_ENTROPY, inputs, cases.labels(4, 3))["0"]
    assert (first.dead_fraction, first.full_fraction) == (0.0, 0.0)


def test_units_are_merged_over_batches_by_and() -> None:
    """The unit that sleeps in the first half is neither dead nor full in the whole."""
    model, inputs = hand_made()
    targets = cases.labels(4, 3)
    first_half = condexp.analyze(model, CROSS_ENTROPY, inputs[:2], targets[:2])["2"]
    second_half = condexp.analyze(model, CROSS_ENTROPY, inputs[2:], targets[2:])["2"]
    assert (first_half.dead_fraction, first_half.full_fraction) == (0.5, 0.25)
    assert (second_half.dead_fraction, second_half.full_fraction) == (0.25, 0.75)
    batches = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    merged = analyze_batches(model, CROSS_ENTROPY, batches, AnalysisOptions())["2"]
    assert (merged.dead_fraction, merged.full_fraction) == (0.25, 0.25)


def test_units_of_a_convolution_are_channels_over_all_positions() -> None:
    """The zeros of the padding do not count: they belong to no unit."""
    model = cases.conv_net(nn.Conv2d(4, 2, 3, padding=1), 3, 3)
    inputs = cases.normal(2, 4, 3, 3)
    inputs[:, 0] = 0
    inputs[:, 1] = inputs[:, 1].abs() + 0.1
    inputs[:, 2] = inputs[:, 2].clamp(min=0)
    for conv_input in ("patches", "channels"):
        record = condexp.analyze(
            model, CROSS_ENTROPY, inputs, cases.labels(2, 3), conv_input=conv_input
        )["0"]
        assert (record.dead_fraction, record.full_fraction) == (0.25, 0.25)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("matrices", [("input",), ("weight",)])
def test_measures_of_a_layer_against_closed_forms(matrices: tuple[str, ...], center: bool) -> None:
    """Whatever is measured besides, and however."""
    layer = cases.randomised(nn.Linear(4, 3))
    inputs, targets = cases.normal(6, 4) + 1, cases.normal(6, 3, seed=5)
    snapshot = condexp.analyze(
        layer, nn.MSELoss(), inputs, targets, matrices, center=center, bias=True, learning_rate=0.2
    )
    (record,) = snapshot.records
    weight, bias = (parameter.detach() for parameter in layer.parameters())
    grad = 2 / 18 * (inputs @ weight.T + bias - targets).T @ inputs
    sigma = torch.linalg.svdvals(grad)[0] / torch.linalg.svdvals(weight)[0]
    expected = {
        "weight_norm": weight.norm(),
        "grad_norm": grad.norm(),
        "domination": sigma,
        "effective_lr": (0.2 / weight.square().sum(1)).median(),
        "input_mean_fraction": inputs.mean(0).square().sum() / inputs.square().sum(1).mean(),
    }
    for name, value in expected.items():
        assert math.isclose(getattr(record, name), float(value), rel_tol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_mean_fraction_of_a_convolution_is_that_of_its_rows(bias: bool) -> None:
    """Of its patches or of its pixels, without the bias's 1."""
    inputs = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    model = cases.conv_net(nn.Conv2d(1, 1, 2, padding=1), 2, 2)
    targets = cases.labels(1, 3)
    record = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, bias=bias)["0"]
    # Nine windows; each of the four pixels of a window sees the image in four of them.
    mean, mean_square = 4 * (4 / 9) ** 2, 4 * 4 / 9
    assert math.isclose(record.input_mean_fraction, mean / mean_square, rel_tol=1e-12)
    centered = inputs - torch.tensor([0.0, 0.0, 2.0, 2.0]).reshape(1, 1, 2, 2)
    record = condexp.analyze(
        model, CROSS_ENTROPY, centered, targets, conv_input="channels", bias=bias
    )["0"]
    assert record.input_mean_fraction == 0
