"""Cotangents of drawn and of all labels, and what refuses to have any."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.loss.cotangents import Cotangents, FisherLabels
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import FisherType
from condexp.errors import InputError
from condexp.models.norm import BatchCenter, BatchScale
from tests import cases

CROSS_ENTROPY = nn.CrossEntropyLoss()


def cotangents(
    loss_fn: object, fisher_type: str, outputs: Tensor, targets: object = None
) -> Cotangents:
    options = AnalysisOptions(fisher_type=FisherType(fisher_type), mc_samples=5, seed=3)
    return FisherLabels(loss_fn, options).cotangents(outputs, targets, len(outputs))


def stacked(given: Cotangents) -> Tensor:
    return torch.stack([given.make(number) for number in range(given.count)])


@pytest.mark.parametrize("spread", [1.0, 20.0, 300.0])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_triangular_root_is_a_root_of_the_softmax_hessian(
    num_classes: int, spread: float
) -> None:
    """Also where probabilities are 0 but for their exponent, or exactly 0."""
    outputs = spread * cases.normal(6, num_classes)
    roots = stacked(cotangents(CROSS_ENTROPY, "exact", outputs))
    assert len(roots) == num_classes - 1
    for n, p in enumerate(outputs.softmax(1)):
        hessian = -torch.outer(p, p)
        for c in range(num_classes):  # 1 − p without its rounding
            hessian[c, c] = p[c] * (p[:c].sum() + p[c + 1 :].sum())
        error = (roots[:, n].T @ roots[:, n] - hessian).abs()
        assert bool((error <= 1e-14 * torch.outer(p.sqrt(), p.sqrt()) + 1e-300).all())


def test_drawn_labels_are_those_of_the_softmax() -> None:
    """p − 1_y over √S, a label each, with the frequencies of p."""
    outputs = cases.normal(1, 4)
    p = outputs.softmax(1)[0]
    options = AnalysisOptions(fisher_type=FisherType.MC, mc_samples=4000)
    drawn = stacked(FisherLabels(CROSS_ENTROPY, options).cotangents(outputs, None, 1))[:, 0]
    labels = p - drawn * math.sqrt(4000)
    assert torch.allclose(labels, F.one_hot(labels.argmax(1), 4).double(), atol=1e-12)
    assert torch.allclose(labels.mean(0), p, atol=4 * 0.5 / math.sqrt(4000))


def test_a_sure_prediction_keeps_its_digits() -> None:
    """1 − p is 10⁻³⁰ here, where 1 itself is rounded at 10⁻¹⁶."""
    outputs = torch.tensor([[69.0, 0.0, 0.0]], dtype=torch.float64)
    expected = math.exp(-69) * torch.tensor([-2.0, 1.0, 1.0], dtype=torch.float64)
    drawn = stacked(cotangents(CROSS_ENTROPY, "mc", outputs))[:, 0] * math.sqrt(5)
    torch.testing.assert_close(drawn, expected.expand(5, -1), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 2 / 6), ("sum", 2.0)])
def test_squared_error_has_a_signal_for_each_output(reduction: str, factor: float) -> None:
    outputs = cases.normal(5, 2, 3)
    exact = stacked(cotangents(nn.MSELoss(reduction=reduction), "exact", outputs))
    assert exact.shape == (6, 5, 2, 3)
    product = torch.einsum("sni,snj->nij", exact.flatten(2), exact.flatten(2))
    torch.testing.assert_close(product, factor * torch.eye(6).double().expand(5, -1, -1))
    options = AnalysisOptions(fisher_type=FisherType.MC, mc_samples=4000)
    loss_fn = nn.MSELoss(reduction=reduction)
    drawn = stacked(FisherLabels(loss_fn, options).cotangents(outputs, None, 5)).flatten(2)
    covariance = torch.einsum("sni,snj->ij", drawn, drawn) / 5
    assert torch.allclose(covariance, factor * torch.eye(6).double(), atol=0.05 * factor)


@pytest.mark.parametrize("fisher_type", ["mc", "exact"])
def test_ignored_targets_get_no_signal(fisher_type: str) -> None:
    outputs, targets = cases.normal(4, 3), torch.tensor([0, -100, 2, 1])
    given = stacked(cotangents(CROSS_ENTROPY, fisher_type, outputs, targets))
    assert float(given[:, 1].abs().max()) == 0
    assert float(given[:, [0, 2, 3]].abs().amax((0, 2)).min()) > 0


def test_dense_prediction_draws_a_label_for_each_pixel() -> None:
    outputs, targets = cases.normal(3, 4, 2, 5), cases.labels(3, 4, 2, 5)
    drawn = stacked(cotangents(CROSS_ENTROPY, "mc", outputs, targets)) * math.sqrt(5)
    labels = outputs.softmax(1) - drawn
    expected = F.one_hot(labels.argmax(2), 4).movedim(-1, 2).double()
    assert torch.allclose(labels, expected, atol=1e-12)
    assert set(labels.argmax(2).flatten().tolist()) == set(range(4))


def test_cotangents_have_the_outputs_type() -> None:
    for fisher_type in ("mc", "exact"):
        for loss_fn in (CROSS_ENTROPY, nn.MSELoss()):
            given = cotangents(loss_fn, fisher_type, cases.normal(3, 2).float())
            assert given.make(0).dtype == torch.float32


@pytest.mark.parametrize("function", [F.cross_entropy, F.mse_loss])
def test_torchs_functions_are_taken_as_their_modules(function: object) -> None:
    module = CROSS_ENTROPY if function is F.cross_entropy else nn.MSELoss()
    for fisher_type in ("mc", "exact"):
        outputs = cases.normal(4, 3)
        expected = stacked(cotangents(module, fisher_type, outputs))
        assert torch.equal(stacked(cotangents(function, fisher_type, outputs)), expected)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.NLLLoss(),
        nn.L1Loss(),
        lambda f, y: F.cross_entropy(2 * f, y),
    ],
    ids=["weighted", "smoothed", "nll", "l1", "lambda"],
)
def test_other_losses_are_refused(loss_fn: Any) -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    with pytest.raises(InputError, match=r"only a plain CrossEntropyLoss .*'empirical'"):
        condexp.analyze(model, loss_fn, inputs, targets, fisher_type="mc")
    # Nothing is drawn where nothing is back-propagated.
    snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "input", fisher_type="mc")
    assert snapshot.layers == ("0", "2", "4")


@pytest.mark.parametrize(
    ("outputs", "fisher_type", "message"),
    [
        (
            cases.normal(12, 3),
            "mc",
            r"a row for each of the 4 samples, the model returns \[12, 3\]",
        ),
        ((cases.normal(4, 3),), "exact", "the model returns tuple"),
        (cases.normal(4, 3, 2), "exact", r"needs outputs \[N, C\].*use fisher_type='mc'"),
    ],
)
def test_outputs_without_a_row_a_sample_are_refused(
    outputs: object, fisher_type: str, message: str
) -> None:
    options = AnalysisOptions(fisher_type=FisherType(fisher_type))
    with pytest.raises(InputError, match=message):
        FisherLabels(CROSS_ENTROPY, options).cotangents(outputs, None, 4)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(5),
        BatchCenter(5),
        BatchScale(5),
        nn.BatchNorm1d(5, track_running_stats=False).eval(),
    ],
    ids=["batch", "center", "scale", "always its own"],
)
def test_batch_statistics_are_refused_with_their_reason(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 3)).double()
    inputs, targets = cases.normal(4, 4), cases.labels(4, 3)
    reason = "'1' normalises by batch statistics.*mixes them; measure in eval mode"
    for matrices, fisher_type in [("fisher", "mc"), ("fisher", "exact"), ("grad_output", "exact")]:
        with pytest.raises(InputError, match=reason):
            condexp.analyze(
                model, CROSS_ENTROPY, inputs, targets, matrices, fisher_type=fisher_type
            )
    for matrices, fisher_type in [("fisher", "empirical"), ("kfac", "mc")]:
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets, matrices, fisher_type=fisher_type)
    if norm.training:
        model.eval()
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "fisher", fisher_type="exact")


def test_a_recorder_has_the_users_loss_alone() -> None:
    for fisher_type in ("mc", "exact"):
        with pytest.raises(InputError, match=r"needs backward passes of its own.*analyze"):
            condexp.Recorder(cases.mlp(), fisher_type=fisher_type)
