"""Σ_x and Σ_∇h equal the factors of another library's KFAC: same scale, nothing fitted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from tests import cases
from tests.analysis import oracles
from tests.analysis.curvlinops_kfac import factors

NUM_CLASSES = 3
# Both sides are float64 sums of the same products, in another order: 1e-8 is generous.
RELATIVE = 1e-8


def resnet20() -> tuple[nn.Module, Tensor]:
    return cases.resnet(num_blocks=3, width=16), cases.normal(5, 2, 8, 8)


def vgg() -> tuple[nn.Module, Tensor]:
    return cases.vgg(), cases.normal(7, 2, 8, 8)


def mlp() -> tuple[nn.Module, Tensor]:
    return cases.mlp((6, 8, 7, NUM_CLASSES), batch_norm=True), cases.normal(11, 6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", [mlp, vgg, resnet20])
def test_factors_equal_curvlinops_kfac_expand(case: Any, reduction: str, bias: bool) -> None:
    model, inputs = case()
    model.eval()
    targets = cases.labels(len(inputs), NUM_CLASSES)
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    snapshot = condexp.analyze(model, loss_fn, inputs, targets, bias=bias, precision="float64")
    theirs = factors(model, loss_fn, inputs, targets, joint_bias=bias)
    assert set(snapshot.layers) == set(theirs[0]) == set(theirs[1])
    if case is resnet20:
        assert len(snapshot.layers) == 20
    for name in snapshot.layers:
        record, sigma_x, sigma_g = snapshot[name], theirs[0][name], theirs[1][name]
        # Theirs are sums of float64 products like ours; without that the test would prove less.
        assert sigma_x.dtype == sigma_g.dtype == torch.float64
        oracles.close(record.input, oracles.united(sigma_x[None]), RELATIVE)
        # KFAC's factor for a sum is the sum over samples, the analysis measures their mean.
        scale = 1 / len(inputs) if reduction == "sum" else 1
        oracles.close(record.grad_output, scale * oracles.united(sigma_g[None]), RELATIVE)


def test_mean_squared_error_differs_by_the_number_of_outputs() -> None:
    """Theory §2: for MSELoss(mean) curvlinops' Σ_∇h is C × ours, which averages over outputs."""
    model, inputs = mlp()
    model.eval()
    targets = cases.normal(len(inputs), NUM_CLASSES, seed=4)
    loss_fn = nn.MSELoss()
    snapshot = condexp.analyze(model, loss_fn, inputs, targets, precision="float64")
    _, theirs = factors(model, loss_fn, inputs, targets, joint_bias=False)
    for name in snapshot.layers:
        expected = oracles.united(theirs[name][None]) / NUM_CLASSES
        oracles.close(snapshot[name].grad_output, expected, RELATIVE)
