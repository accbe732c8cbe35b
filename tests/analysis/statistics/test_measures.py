"""Measures of weights, gradients and units against closed forms."""

import math
import statistics

import pytest
import torch
from torch import nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.linalg.norms import frobenius_norm, row_norms
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


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-17, 1e-10, 1.0, 1e18, 1e25, 1e37])
@pytest.mark.parametrize("shape", [(1,), (40,), (6, 5), (4, 3, 3, 3)])
def test_norms_are_right_in_all_of_float32(shape: tuple[int, ...], scale: float) -> None:
    """From the denormal numbers on; squares of float32 are 0 below 10⁻²³ and inf above 10¹⁹."""
    tensor = (cases.normal(*shape) * scale).float()
    # 8 float32 roundings of a row's sum; the oracle's squares are well inside of float64.
    expected = float(tensor.double().norm())
    assert math.isclose(frobenius_norm(tensor), expected, rel_tol=1e-6)
    if len(shape) > 1:
        rows = tensor.double().flatten(1).norm(dim=1)
        torch.testing.assert_close(row_norms(tensor), rows, rtol=1e-6, atol=0)
        rates = (0.1 / rows.square()).tolist()
        assert math.isclose(effective_lr(tensor, 0.1), statistics.median(rates), rel_tol=3e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_norms_are_right_in_all_of_float64(scale: float) -> None:
    tensor = cases.normal(4, 3).double()
    expected = tensor.norm(dim=1) * scale
    torch.testing.assert_close(row_norms(tensor * scale), expected, rtol=1e-14, atol=0)
    assert math.isclose(frobenius_norm(tensor * scale), tensor.norm() * scale, rel_tol=1e-14)


def test_each_row_may_have_a_range_of_its_own() -> None:
    rows = torch.tensor([[3e-30, 4e-30], [3.0, 4.0], [0.0, 0.0], [3e30, 4e30]])
    expected = torch.tensor([5e-30, 5.0, 0.0, 5e30], dtype=torch.float64)
    torch.testing.assert_close(row_norms(rows), expected, rtol=1e-6, atol=0)
    assert math.isclose(frobenius_norm(rows[:3]), 5, rel_tol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_of_what_is_not_finite_is_not_either(bad: float) -> None:
    rows = torch.tensor([[1.0, bad], [3.0, 4.0]])
    assert not math.isfinite(frobenius_norm(rows))
    assert row_norms(rows)[0].isfinite().item() is False
    assert row_norms(rows)[1] == 5


def test_norms_of_a_network_whose_gradients_vanish() -> None:
    """40 sigmoids: the first layers' gradients are 10⁻²⁵, and √trace(weight_grad) the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = [m for _ in range(40) for m in (nn.Linear(8, 8), nn.Sigmoid())]
        model = nn.Sequential(*hidden, nn.Linear(8, 3))
    inputs, targets = cases.normal(32, 8).float(), torch.arange(32) % 3
    snapshot = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, matrices=("weight", "weight_grad")
    )
    CROSS_ENTROPY(model(inputs), targets).backward()
    for name in snapshot.layers:
        gradient = model.get_parameter(f"{name}.weight").grad
        assert gradient is not None
        expected = float(gradient.double().norm())
        record = snapshot[name]
        assert math.isclose(record.grad_norm, expected, rel_tol=1e-5)
        assert record.weight_grad is not None
        assert math.isclose(record.weight_grad.trace, expected**2, rel_tol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_of_a_layer_whose_weights_leave_the_range_of_squares(scale: float) -> None:
    layer = nn.Linear(6, 5)
    layer.weight.data = cases.normal(5, 6).float() * scale
    snapshot = condexp.analyze(
        layer,
        lambda outputs, _: outputs.sum(1).mean(),
        cases.normal(20, 6).float(),
        None,
        matrices=("weight",),
        learning_rate=0.1,
    )
    weight = layer.weight.detach().double()
    record = snapshot["Linear"]
    assert math.isclose(record.weight_norm, weight.norm(), rel_tol=1e-6)
    rate = float((0.1 / weight.square().sum(1)).median())
    assert math.isclose(record.effective_lr, rate, rel_tol=1e-5)


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
