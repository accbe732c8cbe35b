"""The denominator of every loss: against a sum over samples, and through a whole analysis."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.loss.denominator import loss_denominator
from condexp.errors import InputError
from tests import cases
from tests.analysis import oracles

WEIGHTS = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
IGNORED = torch.tensor([0, 2, -100, 1, -100, 1, 0])


@pytest.mark.parametrize(
    ("loss_fn", "targets", "expected"),
    [
        (nn.CrossEntropyLoss(), cases.labels(7, 3), 7),
        (nn.CrossEntropyLoss(reduction="sum"), cases.labels(7, 3), 1),
        (nn.CrossEntropyLoss(), IGNORED, 5),
        (nn.CrossEntropyLoss(ignore_index=1), torch.tensor([0, 1, 2, 1]), 2),
        (nn.CrossEntropyLoss(WEIGHTS), IGNORED, 0.5 + 1 + 2 + 2 + 0.5),
        (nn.CrossEntropyLoss(), cases.labels(7, 3, 4, 5), 7 * 20),
        (nn.CrossEntropyLoss(label_smoothing=0.1), cases.labels(7, 3), 7),
        (nn.CrossEntropyLoss(), cases.normal(7, 3).softmax(1), 7),
        (nn.CrossEntropyLoss(WEIGHTS), cases.normal(7, 3, 4, 5).softmax(1), 7 * 20),
        (nn.NLLLoss(), cases.labels(7, 3), 7),
        (nn.NLLLoss(WEIGHTS, reduction="sum"), cases.labels(7, 3), 1),
        (nn.MSELoss(), cases.normal(7, 3), 7),
        (nn.MSELoss(reduction="sum"), cases.normal(7, 3), 1),
        (nn.BCEWithLogitsLoss(), cases.normal(7, 3), 7),
        (F.cross_entropy, cases.labels(7, 3), 7),
    ],
)
def test_denominators(loss_fn: object, targets: Tensor, expected: float) -> None:
    assert math.isclose(loss_denominator(loss_fn, targets, 7), expected, rel_tol=1e-12)


@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("dense", [False, True])
def test_mean_times_denominator_is_the_sum(
    weight: Tensor | None, smoothing: float, shape: tuple[int, ...], dense: bool
) -> None:
    """The definition of D, against torch's own two reductions."""
    outputs = cases.normal(7, 3, *shape)
    indices = cases.labels(7, 3, *shape)
    targets = outputs.softmax(1) if dense else indices
    mean = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    total = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction="sum")
    product = float(mean(outputs, targets)) * loss_denominator(mean, targets, 7)
    assert math.isclose(product, float(total(outputs, targets)), rel_tol=1e-12)


def test_reduction_none_is_an_error() -> None:
    with pytest.raises(InputError, match=r"CrossEntropyLoss\(reduction='none'\) returns a loss"):
        loss_denominator(nn.CrossEntropyLoss(reduction="none"), cases.labels(7, 3), 7)


def sample_gradients(loss_sum: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Gradient of each sample's own loss with respect to its output."""
    grads = []
    for n in range(len(outputs)):
        output = outputs[n : n + 1].detach().requires_grad_()
        grads.append(torch.autograd.grad(loss_sum(output), output)[0])
    return torch.cat(grads)


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_ignored_and_weighted_targets_give_each_samples_own_gradient(weight: Tensor | None) -> None:
    """A sample whose target is ignored has g = 0 and still counts in N."""
    model, inputs = cases.mlp(), cases.normal(7, 4)
    outputs = model(inputs).detach()
    logits = outputs.clone().requires_grad_()
    summed = nn.CrossEntropyLoss(weight, reduction="sum")
    (grads,) = torch.autograd.grad(summed(logits, IGNORED), logits)
    assert float(grads[2].abs().max()) == 0
    expected = oracles.united(oracles.grad_output_matrices(oracles.linear_rows(grads)))
    for loss_fn in (nn.CrossEntropyLoss(weight), summed):
        record = condexp.analyze(model, loss_fn, inputs, IGNORED)["4"]
        oracles.close(record.grad_output, expected)


def test_dense_prediction_gives_each_pixels_own_gradient() -> None:
    """A loss that is a mean over N·pixels: Σ_∇h is summed over the pixels of a sample."""
    conv = cases.randomised(nn.Conv2d(2, 3, 1))
    inputs, targets = cases.normal(4, 2, 3, 3), cases.labels(4, 3, 3, 3)
    record = condexp.analyze(conv, nn.CrossEntropyLoss(), inputs, targets)["Conv2d"]
    logits = conv(inputs).detach().requires_grad_()
    summed = F.cross_entropy(logits, targets, reduction="sum")
    (grads,) = torch.autograd.grad(summed, logits)
    matrices = oracles.grad_output_matrices(oracles.pixel_rows(grads, 1))
    oracles.close(record.grad_output, oracles.united(matrices))


def test_a_given_denominator_is_taken() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(7, 4), cases.labels(7, 3)

    def tripled(outputs: Tensor, targets: Tensor) -> Tensor:
        return 3 * F.cross_entropy(outputs, targets, reduction="sum")

    plain = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets)
    given = condexp.analyze(model, tripled, inputs, targets, denominator=1 / 3)
    for name in plain.layers:
        oracles.same(given[name].grad_output, plain[name].grad_output)


def test_mean_squared_error_is_a_mean_over_outputs_too() -> None:
    layer = cases.randomised(nn.Linear(4, 3))
    inputs, targets = cases.normal(6, 4), cases.normal(6, 3, seed=8)
    grads = sample_gradients(lambda f: f.square().mean(), layer(inputs) - targets)
    record = condexp.analyze(layer, nn.MSELoss(), inputs, targets)["Linear"]
    matrices = oracles.grad_output_matrices(oracles.linear_rows(grads))
    oracles.close(record.grad_output, oracles.united(matrices))


def test_torchs_functions_are_taken_as_their_modules() -> None:
    targets = torch.tensor([0, -100, 2])
    assert loss_denominator(F.cross_entropy, targets, 3) == 2
    assert loss_denominator(F.nll_loss, targets, 3) == 2
