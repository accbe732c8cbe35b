"""Σ_x and Σ_∇h equal the factors of another library's KFAC: same scale, nothing fitted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from tests import cases, reference
from tests.analysis import oracles
from tests.analysis.curvlinops_kfac import factors, gauss_newton

NUM_CLASSES = 3
# Both sides are float64 sums of the same products, in another order: 1e-8 is generous.
RELATIVE = 1e-8


def resnet20() -> tuple[nn.Module, Tensor]:
    return cases.resnet(num_blocks=3, width=16), cases.normal(5, 2, 8, 8)


def small_resnet() -> tuple[nn.Module, Tensor]:
    return cases.resnet(width=2), cases.normal(3, 2, 8, 8)


def vgg() -> tuple[nn.Module, Tensor]:
    return cases.vgg(), cases.normal(7, 2, 8, 8)


def mlp() -> tuple[nn.Module, Tensor]:
    return cases.mlp((6, 8, 7, NUM_CLASSES), batch_norm=True), cases.normal(11, 6)


class Tokens(nn.Module):
    """Linear layers on tokens, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4, bias=False)
        self.fc = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.b(torch.tanh(self.a(x)))
        out: Tensor = self.fc(torch.tanh(hidden).mean(1))
        return out


def tokens() -> tuple[nn.Module, Tensor]:
    return cases.randomised(Tokens()), cases.normal(6, 4, 5)


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", [mlp, vgg, resnet20, tokens])
def test_factors_equal_curvlinops_kfac(
    case: Any, reduction: str, bias: bool, weight_sharing: str
) -> None:
    model, inputs = case()
    model.eval()
    targets = cases.labels(len(inputs), NUM_CLASSES)
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    choices: Any = {"bias": bias, "precision": "float64", "weight_sharing": weight_sharing}
    snapshot = condexp.analyze(model, loss_fn, inputs, targets, **choices)
    how: Any = {"joint_bias": bias, "weight_sharing": weight_sharing}
    theirs = factors(model, loss_fn, inputs, targets, **how)
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


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), nn.MSELoss()])
@pytest.mark.parametrize("case", [mlp, vgg, small_resnet])
def test_exact_fisher_equals_the_gauss_newton_matrix(case: Any, loss_fn: nn.Module) -> None:
    """In eval mode: the network's, and a layer's block of it."""
    model, inputs = case()
    model.eval()
    targets = cases.labels(len(inputs), NUM_CLASSES)
    num_signals = NUM_CLASSES - 1
    if isinstance(loss_fn, nn.MSELoss):
        targets, num_signals = cases.normal(len(inputs), NUM_CLASSES, seed=4), NUM_CLASSES
    snapshot = condexp.analyze(model, loss_fn, inputs, targets, "fisher", fisher_type="exact")
    length = num_signals * len(inputs)
    for names in (snapshot.layers, snapshot.layers[-1:]):
        dense = gauss_newton(model, loss_fn, inputs, targets, names)
        given = snapshot.fisher if len(names) > 1 else snapshot[names[0]].fisher
        expected = reference.eigenvalues(dense)
        oracles.close(given, expected[:length], RELATIVE)
        assert float(expected[length:].abs().sum()) < RELATIVE * float(expected[0])
