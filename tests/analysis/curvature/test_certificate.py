"""The certificate of second derivatives: the wrong are refused, kinks are not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.curvature.certificate import WrongDerivativeError
from condexp.analysis.measurement import Measurement, certify_few
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix
from tests import cases
from tests.analysis.curvature.test_measure import BOTH, CROSS_ENTROPY, Detaching, with_function
from tests.from_conf import build

CURVATURE = (Matrix.HESSIAN, Matrix.GGN)
FEW: dict[str, Any] = {"num_random_vectors": 2, "num_lanczos_steps": 2, "top_k": 1}


class Symmetric(torch.autograd.Function):
    """½x², whose second derivative counts as 0: the Hessian of one layer stays symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return x.detach() * grads[0]


class Right(Symmetric):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return x * grads[0]


def one_layer(function: Any) -> nn.Module:
    class Applied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = function.apply(self.fc(x))
            return result

    return cases.randomised(Applied())


def refused(model: nn.Module, loss: Callable[..., Tensor] = CROSS_ENTROPY) -> Any:
    inputs, targets = cases.normal(12, 6), cases.labels(12, 4)
    with pytest.raises(WrongDerivativeError) as error:
        condexp.analyze(model, loss, inputs, targets, ("hessian",), **FEW)
    return error.value


def test_a_wrong_derivative_that_is_symmetric_is_refused() -> None:
    """Nothing but the certificate tells: the matrix is symmetric, and plausible."""
    said = str(refused(one_layer(Symmetric)))
    assert "matrix 'hessian': its product with a vector is not what differences" in said
    assert "probably detaches in its backward" in said


def test_a_detached_gradient_makes_a_wrong_gauss_newton_matrix() -> None:
    inputs, targets = cases.normal(12, 6), cases.labels(12, 4)
    with pytest.raises(WrongDerivativeError, match="matrix 'ggn'"):
        condexp.analyze(with_function(Detaching), CROSS_ENTROPY, inputs, targets, ("ggn",), **FEW)


def test_a_right_one_of_the_same_function_is_not() -> None:
    inputs, targets = cases.normal(12, 6), cases.labels(12, 4)
    snapshot = condexp.analyze(one_layer(Right), CROSS_ENTROPY, inputs, targets, BOTH, **FEW)
    assert snapshot.hessian is not None


def test_a_loss_that_detaches_is_refused() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = Symmetric.apply(outputs - 1.0).mean()
        return result

    model = cases.randomised(nn.Sequential(nn.Linear(6, 4)))
    refused(model, loss)
    with pytest.raises(WrongDerivativeError, match="matrix 'ggn'"):
        condexp.analyze(model, loss, cases.normal(12, 6), cases.labels(12, 4), ("ggn",), **FEW)


def test_float32_networks_and_sharpness_are_certified() -> None:
    model, inputs = one_layer(Symmetric).float(), cases.normal(12, 6).float()
    batches = [(inputs, cases.labels(12, 4))]
    with pytest.raises(WrongDerivativeError):
        Measurement(model, CROSS_ENTROPY, batches, AnalysisOptions(), start={}).sharpness()


def test_once_as_long_as_a_search_goes_on() -> None:
    model, inputs, targets = one_layer(Right), cases.normal(12, 6), cases.labels(12, 4)
    options = AnalysisOptions((Matrix.HESSIAN,), layer_blocks=False, **FEW)
    first = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options, start=first.eigenvectors)
    warm = len(calls)
    calls.clear()
    analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options)
    assert len(calls) >= warm + 4  # here, there and at both ends of a step


NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"depth": 4, "width": 9, "norm": "none"}),
    "resnet": ("resnet", {"depth": 8}),
    "vgg": ("vgg", {"depth": 11, "norm": "none"}),
    "vit": ("vit", {"depth": 1, "width": 16, "heads": 2, "patch_size": 4}),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["random", "zero", "rectified"])
def test_kinks_and_ties_are_no_reason_to_refuse(name: str, kind: str) -> None:
    """Biases start at 0: of an input of zeros every unit lies at its kink, pooled ones are ties."""
    net, options = NETS[name]
    torch.manual_seed(0)
    model = build(net, (1, 8, 8), 4, **options).train()
    drawn = cases.normal(6, 1, 8, 8).float()
    inputs = {"random": drawn, "zero": 0 * drawn, "rectified": drawn.clamp(min=0)}[kind]
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    certify_few(model, CROSS_ENTROPY, inputs, cases.labels(6, 4), CURVATURE, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_and_a_diverged_network() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 4)).train()
    certify_few(model, CROSS_ENTROPY, cases.normal(6, 6).float(), cases.labels(6, 4), CURVATURE, 0)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    certify_few(model, CROSS_ENTROPY, cases.normal(6, 6).float(), cases.labels(6, 4), CURVATURE, 0)
