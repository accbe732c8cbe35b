"""docs/theory.md §6: exact facts about the factors, each under its own name; float64, to 1e-10."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.snapshot import LayerSnapshot, Snapshot
from tests import cases, reference
from tests.analysis import oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
MATRICES = ("input", "grad_output")

# The mean over the batch of a loss that is linear in the output, so that g is the same for any net.
COEFFICIENTS = cases.normal(6, 3, seed=11)


def linear_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs * COEFFICIENTS[: len(outputs)]).sum(1).mean()


def layers_of(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def multiply_weights(model: nn.Module, factors: list[float]) -> None:
    with torch.no_grad():
        for layer, factor in zip(layers_of(model), factors, strict=True):
            layer.weight.mul_(factor)


def test_eigenvalues_of_a_kronecker_product_are_the_products() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(20, 4), cases.labels(20, 3)
    for record in condexp.analyze(model, CROSS_ENTROPY, inputs, targets).records:
        kfac, a, b = record.kfac, record.input, record.grad_output
        assert kfac is not None
        assert a is not None
        assert b is not None
        dense = torch.kron(a.eigenvalues, b.eigenvalues).sort(descending=True).values
        assert math.isclose(kfac.lambda_max, float(dense[0]), rel_tol=1e-15)
        assert math.isclose(kfac.trace, float(dense.sum()), rel_tol=1e-12)
        assert kfac.rank == float((dense > 0).sum())
        for p in (0.3, 0.5, 0.8, 0.9, 1.0):
            assert math.isclose(kfac.kappa(p), reference.kappa(dense, p), rel_tol=1e-12)


# One linear layer, squared loss: H = c·Σ_x ⊗ I.
NUM_SAMPLES, NUM_OUTPUTS = 12, 3
SquaredLoss = tuple[Callable[[Tensor, Tensor], Tensor], float]
SQUARED_LOSSES: dict[str, SquaredLoss] = {
    "half the sum over N": (lambda f, y: 0.5 * (f - y).square().sum() / len(f), 1),
    "the sum over N": (lambda f, y: (f - y).square().sum() / len(f), 2),
    "MSELoss mean": (nn.MSELoss(), 2 / NUM_OUTPUTS),
    "MSELoss sum": (nn.MSELoss(reduction="sum"), 2 * NUM_SAMPLES),
}


@pytest.fixture(params=list(SQUARED_LOSSES))
def squared_loss(request: pytest.FixtureRequest) -> SquaredLoss:
    return SQUARED_LOSSES[str(request.param)]


def linear_problem() -> tuple[nn.Linear, Tensor, Tensor]:
    """A layer, inputs with distinct eigenvalues between 1/4 and 4, targets it can fit exactly."""
    scales = torch.tensor([2.0, 1.0, 0.7, 0.5], dtype=torch.float64)
    inputs = cases.normal(NUM_SAMPLES, 4) * scales
    layer = cases.randomised(nn.Linear(4, NUM_OUTPUTS, bias=False))
    assert isinstance(layer, nn.Linear)
    return layer, inputs, inputs @ layer.weight.detach().T


def input_spectrum(snapshot: Snapshot) -> Spectrum:
    (record,) = snapshot.records
    assert record.input is not None
    return record.input


def test_hessian_of_one_linear_layer_is_c_times_the_input_spectrum(
    squared_loss: SquaredLoss,
) -> None:
    loss_fn, c = squared_loss
    layer, inputs, targets = linear_problem()

    def loss(weight: Tensor) -> Tensor:
        return loss_fn(F.linear(inputs, weight), targets)

    hessian = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        loss, layer.weight.detach()
    )
    curvature = reference.eigenvalues(hessian.reshape(layer.weight.numel(), -1))
    spectrum = input_spectrum(condexp.analyze(layer, loss_fn, inputs, targets, ("input",)))
    expected = c * spectrum.eigenvalues.repeat_interleave(NUM_OUTPUTS)
    torch.testing.assert_close(expected, curvature, rtol=1e-10, atol=0)


def descend(
    problem: tuple[nn.Linear, Tensor, Tensor],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    error: Tensor,
    lr: float,
    steps: int,
) -> Tensor:
    """The error after some steps of gradient descent from the optimum plus an error."""
    layer, inputs, targets = problem
    optimum = layer.weight.detach()
    weight = optimum + error
    for _ in range(steps):
        weight = weight.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_fn(F.linear(inputs, weight), targets), weight)
        weight = weight.detach() - lr * grad
    return weight - optimum


def test_gradient_descent_contracts_each_mode_by_one_minus_lr_lambda(
    squared_loss: SquaredLoss,
) -> None:
    loss_fn, c = squared_loss
    problem = layer, inputs, targets = linear_problem()
    spectrum = input_spectrum(condexp.analyze(layer, loss_fn, inputs, targets, ("input",)))
    lr = 1.3 / (c * spectrum.lambda_max)
    modes = torch.linalg.eigh(reference.mean_second_moment(inputs[:, None])).eigenvectors.flip(-1)
    for eigenvalue, mode in zip(spectrum.eigenvalues, modes.T, strict=True):
        error = torch.outer(cases.normal(NUM_OUTPUTS, seed=5), mode)
        after = descend(problem, loss_fn, error, lr, 1)
        expected = (1 - lr * c * float(eigenvalue)) * error
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-10)


def test_gradient_descent_diverges_exactly_above_two_over_lambda_max(
    squared_loss: SquaredLoss,
) -> None:
    loss_fn, c = squared_loss
    problem = layer, inputs, targets = linear_problem()
    spectrum = input_spectrum(condexp.analyze(layer, loss_fn, inputs, targets, ("input",)))
    top = torch.linalg.eigh(reference.mean_second_moment(inputs[:, None])).eigenvectors[:, -1]
    error = torch.outer(cases.normal(NUM_OUTPUTS, seed=5), top)
    for factor, growth in [(1.99, 0.99), (2.01, 1.01)]:
        lr = factor / (c * spectrum.lambda_max)
        after = descend(problem, loss_fn, error, lr, 50)
        # 50 steps multiply the rounding of one (1e-16 relative) by at most 50 · 1.01⁵⁰.
        assert math.isclose(float(after.norm() / error.norm()), growth**50, rel_tol=1e-10)


def rectified_mlp() -> tuple[nn.Module, Tensor]:
    return cases.mlp(bias=False), cases.normal(6, 4)


def rectified_cnn() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 3, bias=False),
    )
    return cases.randomised(model), cases.normal(6, 2, 5, 5)


@pytest.mark.parametrize("case", [rectified_mlp, rectified_cnn])
def test_rectified_net_scales_by_the_squares_of_the_factors(
    case: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    """Weights × α_k > 0: Σ_x × Π_{i<k} α_i², and Σ_∇h × Π_{i>k} α_i² for a linear loss."""
    model, inputs = case()
    factors = [3.0, 0.2, 7.0]
    before = condexp.analyze(model, linear_loss, inputs, inputs, MATRICES)
    multiply_weights(model, factors)
    after = condexp.analyze(model, linear_loss, inputs, inputs, MATRICES)
    for k, name in enumerate(before.layers):
        earlier, later = math.prod(factors[:k]) ** 2, math.prod(factors[k + 1 :]) ** 2
        oracles.same(after[name].input, before[name].input, earlier)
        oracles.same(after[name].grad_output, before[name].grad_output, later)


def normalised_mlp(eps: float) -> nn.Module:
    """Train-mode BN after every linear layer, the last too."""
    model = nn.Sequential(*cases.mlp(batch_norm=True), nn.BatchNorm1d(3)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = eps
    return model


@pytest.mark.parametrize("factors", [[0.01, 100.0, 10.0], [1.0, 0.01, 1.0], [100.0, 1.0, 0.1]])
def test_batch_norm_after_every_layer_scales_by_the_inverse_square(factors: list[float]) -> None:
    """Weights × α_k: Σ_x unchanged, Σ_∇h of layer k × 1/α_k², domination too, whatever the rest."""
    model, inputs, targets = normalised_mlp(1e-60), cases.normal(9, 4), cases.labels(9, 3)
    before = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, MATRICES)
    multiply_weights(model, factors)
    after = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, MATRICES)
    for factor, name in zip(factors, before.layers, strict=True):
        oracles.same(after[name].input, before[name].input)
        oracles.same(after[name].grad_output, before[name].grad_output, factor**-2)
        ratio = after[name].domination / before[name].domination
        assert math.isclose(ratio, factor**-2, rel_tol=1e-10)


def test_batch_norm_at_the_usual_eps_scales_so_only_near_one() -> None:
    """Once α²·v is not far above eps = 1e-5, the factor is off by more than the last digits."""
    inputs, targets = cases.normal(9, 4), cases.labels(9, 3)
    ratios = {}
    for factor in (1.0, 0.7, 0.01):
        model = normalised_mlp(1e-5)
        multiply_weights(model, [factor, 1.0, 1.0])
        record = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, MATRICES)["0"]
        assert record.grad_output is not None
        ratios[factor] = record.grad_output.lambda_max * factor**2
    assert math.isclose(ratios[0.7], ratios[1.0], rel_tol=1e-3)
    # eps / (α²·v) is about 0.1 here, so the variance is off by some 10 %.
    assert not math.isclose(ratios[0.01], ratios[1.0], rel_tol=0.02)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_batch_norm_before_the_last_layer_fixes_trace_and_mean(eps: float) -> None:
    """γ = 1, β = 0: trace(Σ_x) = Σ_j v_j / (v_j + eps), mean fraction 0."""
    hidden = cases.mlp((4, 6), bias=False)
    model = nn.Sequential(hidden, nn.BatchNorm1d(6, eps=eps), nn.Linear(6, 3)).double()
    inputs, targets = cases.normal(8, 4), cases.labels(8, 3)
    variances = hidden(inputs).detach().var(0, correction=0)
    record = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)["2"]
    assert record.input is not None
    expected = float((variances / (variances + eps)).sum())
    assert math.isclose(record.input.trace, expected, rel_tol=1e-10)
    assert 0 <= record.input_mean_fraction < 1e-20  # the square of a mean that rounds to 1e-16


def test_batch_mean_of_g_before_batch_norm_is_zero() -> None:
    """So centering Σ_∇h takes nothing away, where it does without BN."""
    inputs, targets = cases.normal(8, 4), cases.labels(8, 3)
    model = cases.mlp(batch_norm=True)
    plain = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, MATRICES)
    centered = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, MATRICES, center=True)
    for name in ("0", "3"):
        ((_, grad),) = oracles.calls(model, name, CROSS_ENTROPY, inputs, targets)
        assert float(grad.mean(0).abs().max()) < 1e-10
        oracles.same(centered[name].grad_output, plain[name].grad_output)
    last, last_centered = plain["6"].grad_output, centered["6"].grad_output
    assert last is not None
    assert last_centered is not None
    assert last_centered.trace < 0.999 * last.trace


def test_softmax_cross_entropy_has_the_null_vector_of_ones() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(30, 4), cases.labels(30, 3)
    record = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)["4"]
    ((_, grad),) = oracles.calls(model, "4", CROSS_ENTROPY, inputs, targets)
    assert float((grad @ torch.ones(3, dtype=torch.float64)).abs().max()) < 1e-15
    assert record.grad_output is not None
    assert record.grad_output.rank == 2
    assert record.grad_output.lambda_min == 0
    assert record.grad_output.kappa(1.0) == math.inf


@pytest.mark.parametrize("model", [cases.mlp(batch_norm=True), cases.mlp()], ids=["bn", "plain"])
def test_mean_and_summed_loss_give_the_same_spectra(model: nn.Module) -> None:
    inputs, targets = cases.normal(8, 4), cases.labels(8, 3)
    mean = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    summed = condexp.analyze(model, nn.CrossEntropyLoss(reduction="sum"), inputs, targets)
    for name in mean.layers:
        oracles.same(summed[name].input, mean[name].input)
        oracles.same(summed[name].grad_output, mean[name].grad_output)
        assert math.isclose(summed[name].grad_norm, 8 * mean[name].grad_norm, rel_tol=1e-10)


def first_input(model: nn.Module, inputs: Tensor) -> Spectrum:
    targets = cases.labels(len(inputs), 3)
    record: LayerSnapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets).records[0]
    assert record.input is not None
    return record.input


@pytest.mark.parametrize("factor", [1e-3, 5.0])
def test_input_times_c_scales_by_its_square_and_keeps_kappa(factor: float) -> None:
    model, inputs = cases.mlp(), cases.normal(12, 4)
    before, after = first_input(model, inputs), first_input(model, factor * inputs)
    oracles.same(after, before, factor**2)
    for p in (0.5, 0.8, 1.0):
        assert math.isclose(after.kappa(p), before.kappa(p), rel_tol=1e-10)


def test_orthogonal_rotation_of_the_input_keeps_the_spectrum() -> None:
    model, inputs = cases.mlp(), cases.normal(12, 4)
    rotation = torch.linalg.qr(cases.normal(4, 4, seed=9)).Q
    oracles.same(first_input(model, inputs @ rotation), first_input(model, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicated_feature_makes_kappa_infinite(dtype: torch.dtype) -> None:
    """The classical condition number is +inf, not the 10¹⁷ that rounding would make of it."""
    inputs = cases.normal(50, 3).to(dtype)
    spectrum = first_input(cases.mlp().to(dtype), torch.cat([inputs, inputs[:, :1]], dim=1))
    assert spectrum.kappa(1.0) == math.inf
    assert spectrum.rank == 3
    assert spectrum.kappa(0.75) < 100
