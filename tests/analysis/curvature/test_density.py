"""Densities and estimates of networks' own matrices, against dense ones of torch.func."""

import functools

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.linalg.curvature_spectrum import CurvatureSpectrum, SearchEffort, search
from condexp.analysis.vocabulary import DENSITY_POINTS
from tests import cases
from tests.analysis import curvature_oracles as oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
DENSE = {"hessian": oracles.dense_hessian, "ggn": oracles.dense_ggn}


@functools.cache
def network() -> tuple[nn.Module, Tensor, Tensor]:
    """255 weights; BatchNorm in training mode, one function of the batch."""
    modules = [nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 7), nn.GELU()]
    model = cases.randomised(nn.Sequential(*modules, nn.Linear(7, 4)))
    return model, cases.normal(20, 8), cases.labels(20, 4)


@functools.cache
def dense(matrix: str, layer: str = "") -> Tensor:
    model, inputs, targets = network()
    names = [name for name, _ in model.named_parameters()] if not layer else [f"{layer}.weight"]
    return DENSE[matrix](model, CROSS_ENTROPY, inputs, targets, names)


def moment(found: CurvatureSpectrum, power: int) -> float:
    """Of the density as it is stored: at points that are the same in every file."""
    points = torch.tensor(DENSITY_POINTS, dtype=torch.float64) * found.density_scale
    return float((found.density * points**power).sum())


@pytest.mark.parametrize("matrix", DENSE)
def test_moments_of_a_density_that_is_computed_whole_are_the_dense_matrixs(matrix: str) -> None:
    """To 1e-3 of Σ|λ|^p / n: mass is shared so that means stay, and points are 6 % apart."""
    model, inputs, targets = network()
    snapshot = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, DENSE, num_random_vectors=20, num_lanczos_steps=20
    )
    for layer in ("", "0", "3"):
        values = torch.linalg.eigvalsh(dense(matrix, layer))
        found = getattr(snapshot[layer] if layer else snapshot, matrix)
        assert found.num_products == len(values)
        for power in (0, 1, 2):
            scale = float((values.abs() ** power).mean())
            expected = float((values**power).mean())
            assert moment(found, power) == pytest.approx(expected, abs=1e-3 * scale)


@pytest.mark.parametrize("matrix", DENSE)
def test_moments_of_an_estimated_density_are_within_the_errors_that_are_stated(
    matrix: str,
) -> None:
    model, inputs, targets = network()
    snapshot = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, DENSE, num_random_vectors=8, num_lanczos_steps=24
    )
    values, found = torch.linalg.eigvalsh(dense(matrix)), getattr(snapshot, matrix)
    num, square = len(values), float(values.square().sum())
    assert found.num_products != num
    assert moment(found, 0) == pytest.approx(1, abs=1e-12)
    # Of the same vectors as trace and norm, whose errors these are. The density takes the mean of
    # the quadratures as it is, the trace weighs each by the length of its vector.
    trace = num * moment(found, 1)
    assert trace == pytest.approx(float(values.sum()), abs=2 * found.trace_error)
    squares = 2 * found.frobenius_norm * found.frobenius_norm_error + 1e-3 * square
    assert num * moment(found, 2) == pytest.approx(square, abs=2 * squares)


@pytest.mark.parametrize("matrix", DENSE)
def test_trace_and_norm_of_a_network_are_within_their_errors_in_95_of_100_trials(
    matrix: str,
) -> None:
    """200 trials, of intervals that are meant for 99 %."""
    whole, effort = dense(matrix), SearchEffort(4, 1e-3, 8, 12)
    trace, norm, hits = float(whole.trace()), float(whole.norm()), [0, 0]
    for seed in range(200):
        found = search(
            lambda v: whole @ v, len(whole), effort, torch.float64, generator=cases.seeded(seed)
        ).spectrum
        assert found.num_products != len(whole)
        hits[0] += abs(found.trace - trace) <= found.trace_error
        hits[1] += abs(found.frobenius_norm - norm) <= found.frobenius_norm_error
    assert min(hits) >= 190, hits
