"""Hessian and Gauss–Newton spectra against dense matrices of torch.func, and closed forms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.linalg.curvature_spectrum import CurvatureSpectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import SpectrumStatus
from condexp.errors import InputError
from tests import cases
from tests.analysis import curvature_oracles as oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
BOTH = ("hessian", "ggn")
# Searched, not computed whole: four products of random vectors are fewer than any net has weights.
SEARCHED: dict[str, Any] = {
    "matrices": BOTH,
    "eigenvalue_tolerance": 1e-8,
    "num_random_vectors": 2,
    "num_lanczos_steps": 2,
}
DENSE = {"hessian": oracles.dense_hessian, "ggn": oracles.dense_ggn}


def smooth(*, batch_norm: bool = False) -> nn.Module:
    norm = [nn.BatchNorm1d(9)] if batch_norm else []
    modules = [nn.Linear(6, 9), *norm, nn.Tanh(), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 4)]
    return cases.randomised(nn.Sequential(*modules))


def convolutional() -> nn.Module:
    head = [nn.Flatten(), nn.Linear(12, 4)]
    conv = [nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(inplace=True)]
    return cases.randomised(nn.Sequential(*conv, nn.Conv2d(3, 3, 2, groups=3), *head))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (smooth(), cases.normal(12, 6)),
    "rectified": lambda: (cases.mlp((4, 6, 7, 4)), cases.normal(9, 4)),
    "batch norm": lambda: (smooth(batch_norm=True), cases.normal(12, 6)),
    "convolutions": lambda: (convolutional(), cases.normal(8, 2, 7, 7)),
}


def everything(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_top_eigenvalues_are_those_of_the_dense_matrices(name: str, training: bool) -> None:
    """Residual 1e-8 relative, so 1e-6 has room: an eigenvalue's error is quadratic in it."""
    model, inputs = CASES[name]()
    model.train(training)
    targets = cases.labels(len(inputs), 4)
    for bias in (False, True):
        snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, bias=bias, **SEARCHED)
        for matrix, dense in DENSE.items():
            blocks: dict[str, list[str]] = {"": everything(model)}
            for layer in snapshot.layers:
                parts = ("weight", "bias") if bias else ("weight",)
                blocks[layer] = [
                    n for n in everything(model) if n in {f"{layer}.{p}" for p in parts}
                ]
            for layer, names in blocks.items():
                whole = dense(model, CROSS_ENTROPY, inputs, targets, names)
                assert len(whole) <= 500
                found = getattr(snapshot[layer] if layer else snapshot, matrix)
                expected = oracles.eigenvalues(whole)[:5]
                scale = float(expected.abs().max())
                torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=1e-6 * scale)
                assert (found.eigenvalues - expected).abs().le(found.eigenvalue_errors).all()
                assert found.num_weights == len(whole)
                assert found.status is SpectrumStatus.OK


def exact_spectrum(whole: Tensor, found: CurvatureSpectrum) -> None:
    values = oracles.eigenvalues(whole)
    torch.testing.assert_close(found.eigenvalues, values[:5], rtol=1e-10, atol=1e-12)
    assert found.num_products == found.num_weights == len(whole)
    assert found.trace == pytest.approx(float(whole.trace()), rel=1e-10, abs=1e-12)
    assert found.frobenius_norm == pytest.approx(float(whole.norm()), rel=1e-10)
    assert found.lambda_min == pytest.approx(float(values[-1]), abs=1e-10)
    share = float(values.clamp(max=0).abs().sum() / values.abs().sum())
    assert found.negative_share == pytest.approx(share, abs=1e-9)


def test_a_small_matrix_is_computed_whole() -> None:
    model, inputs = smooth(), cases.normal(12, 6)
    targets = cases.labels(12, 4)
    snapshot = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, BOTH, num_random_vectors=20, num_lanczos_steps=20
    )
    for matrix, dense in DENSE.items():
        whole = dense(model, CROSS_ENTROPY, inputs, targets, everything(model))
        exact_spectrum(whole, getattr(snapshot, matrix))
    assert snapshot.eigenvectors == {}


@pytest.mark.parametrize("loss_fn", [CROSS_ENTROPY, nn.MSELoss()])
def test_the_gauss_newton_matrix_is_the_exact_fisher(loss_fn: nn.Module) -> None:
    """Without biases the layers' weights are all parameters, so the networks' are equal too."""
    model, inputs = cases.mlp((5, 6, 4), bias=False), cases.normal(7, 5)
    squared = isinstance(loss_fn, nn.MSELoss)
    targets = cases.normal(7, 4, seed=3) if squared else cases.labels(7, 4)
    options = AnalysisOptions.of(("ggn", "fisher"), {"fisher_type": "exact", "top_k": 6})
    snapshot = condexp.analyze(model.eval(), loss_fn, inputs, targets, options)
    pairs = [(snapshot.ggn, snapshot.fisher)]
    pairs += [(record.ggn, record.fisher) for record in snapshot.records]
    for ggn, fisher in pairs:
        assert ggn is not None
        assert fisher is not None
        torch.testing.assert_close(ggn.eigenvalues, fisher.eigenvalues[:6], rtol=1e-8, atol=1e-12)
        assert ggn.trace == pytest.approx(fisher.trace, rel=1e-8)
        assert ggn.negative_share < 1e-12


def test_one_linear_layer_is_the_closed_form() -> None:
    """H = 2/C · Σ_x ⊗ I (theory.md §6): each eigenvalue of Σ_x comes C times."""
    model, inputs = (
        cases.randomised(nn.Sequential(nn.Linear(20, 3, bias=False))),
        cases.normal(40, 20),
    )
    snapshot = condexp.analyze(
        model, nn.MSELoss(), inputs, cases.normal(40, 3, seed=4), top_k=7, **SEARCHED
    )
    expected = 2 / 3 * oracles.eigenvalues(inputs.T @ inputs / 40).repeat_interleave(3)
    for found in (snapshot.hessian, snapshot.ggn, snapshot["0"].hessian):
        assert found is not None
        torch.testing.assert_close(found.eigenvalues, expected[:7], rtol=1e-8, atol=0)
        # Rademacher vectors: the trace is within what it says, the norm's estimate likewise.
        assert abs(found.trace - float(expected.sum())) <= found.trace_error


def test_several_batches_are_one() -> None:
    """Also where targets are ignored, whose number is what a batch's mean divides by."""
    model, inputs, targets = smooth().eval(), cases.normal(12, 6), cases.labels(12, 4)
    targets[[0, 1, 7]] = -100
    options = AnalysisOptions(**SEARCHED)
    whole = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, options)
    parts = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    split = analyze_batches(model, CROSS_ENTROPY, parts, options)
    for matrix in BOTH:
        one, two = getattr(whole, matrix), getattr(split, matrix)
        torch.testing.assert_close(one.eigenvalues, two.eigenvalues, rtol=1e-9, atol=0)
        assert one.trace == pytest.approx(two.trace, rel=1e-9)


def test_dropout_is_one_function() -> None:
    """The draws of all products are those of the state that was found: the matrix is symmetric."""
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 4))
    cases.randomised(model).train()
    inputs, targets = cases.normal(12, 6), cases.labels(12, 4)
    parts = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    options = AnalysisOptions.of(
        BOTH, {"num_random_vectors": 20, "num_lanczos_steps": 20, "layer_blocks": False}
    )
    torch.manual_seed(5)
    first = analyze_batches(model, CROSS_ENTROPY, parts, options)
    torch.manual_seed(5)
    again = analyze_batches(model, CROSS_ENTROPY, parts, options)
    torch.manual_seed(6)
    other = analyze_batches(model, CROSS_ENTROPY, parts, options)
    assert first.hessian is not None
    assert again.hessian is not None
    assert other.hessian is not None
    assert torch.equal(first.hessian.eigenvalues, again.hessian.eigenvalues)
    assert first.hessian.lambda_max_error < 1e-13  # asymmetry is in it
    assert first.hessian.lambda_max != other.hessian.lambda_max


def test_a_search_that_starts_from_the_last_takes_fewer_products() -> None:
    model, inputs, targets = smooth(), cases.normal(12, 6), cases.labels(12, 4)
    choices = SEARCHED | {"matrices": ("hessian",), "layer_blocks": False, "top_k": 2}
    options = AnalysisOptions(**choices)
    cold = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options)
    assert cold.hessian is not None
    assert set(cold.eigenvectors) == {"hessian/"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-4)
    warm = analyze_batches(
        model, CROSS_ENTROPY, [(inputs, targets)], options, start=cold.eigenvectors
    )
    anew = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options)
    assert warm.hessian is not None
    assert anew.hessian is not None
    assert warm.hessian.num_products < anew.hessian.num_products - 4
    torch.testing.assert_close(
        warm.hessian.eigenvalues, anew.hessian.eigenvalues, rtol=1e-7, atol=0
    )
    other = {"hessian/": torch.ones(3, 2)}  # of another network: not used
    fresh = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options, start=other)
    assert fresh.hessian is not None
    assert torch.equal(fresh.hessian.eigenvalues, anew.hessian.eigenvalues)


def test_float32_is_within_its_error_of_float64() -> None:
    model, inputs, targets = smooth().float(), cases.normal(12, 6).float(), cases.labels(12, 4)
    choices = SEARCHED | {"eigenvalue_tolerance": 1e-5}
    as_trained = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, **choices)
    exact = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, network_precision="float64", **choices
    )
    double = condexp.analyze(model.double(), CROSS_ENTROPY, inputs.double(), targets, **choices)
    assert exact.hessian is not None
    assert double.hessian is not None
    assert as_trained.hessian is not None
    assert torch.equal(exact.hessian.eigenvalues, double.hessian.eigenvalues)
    error = (as_trained.hessian.eigenvalues - exact.hessian.eigenvalues).abs()
    bound = as_trained.hessian.eigenvalue_errors + exact.hessian.eigenvalue_errors
    assert error.le(bound).all()
    assert as_trained.hessian.dtype is torch.float32


def test_a_batch_of_any_kind_has_a_hessian() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.fc(x)
            return {"loss": CROSS_ENTROPY(logits, labels), "logits": logits}

    model, inputs, targets = cases.randomised(Own()), cases.normal(12, 6), cases.labels(12, 4)
    batch = {"x": inputs, "labels": targets}
    snapshot = condexp.analyze(model, None, batch, matrices=("hessian",))
    plain = nn.Sequential(model.get_submodule("fc"))
    expected = condexp.analyze(plain, CROSS_ENTROPY, inputs, targets, matrices=("hessian",))
    assert snapshot.hessian is not None
    assert expected.hessian is not None
    torch.testing.assert_close(
        snapshot.hessian.eigenvalues, expected.hessian.eigenvalues, rtol=1e-12, atol=1e-15
    )
    with pytest.raises(InputError, match="'ggn' needs a model whose output is one tensor"):
        condexp.analyze(model, None, batch, matrices=("ggn",))


def test_frozen_and_unused_parameters() -> None:
    model, inputs, targets = smooth(), cases.normal(12, 6), cases.labels(12, 4)
    model.requires_grad_(False)
    model.get_submodule("2").requires_grad_(True)
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, **SEARCHED)
    names = ["2.weight", "2.bias"]
    whole = oracles.dense_hessian(model, CROSS_ENTROPY, inputs, targets, names)
    assert snapshot.hessian is not None
    assert snapshot.hessian.num_weights == len(whole) + 3
    torch.testing.assert_close(
        snapshot.hessian.eigenvalues, oracles.eigenvalues(whole)[:5], rtol=1e-7, atol=0
    )
    assert snapshot.layers == ("2",)


def test_a_diverged_network_is_nonfinite() -> None:
    model, inputs, targets = smooth(), cases.normal(12, 6), cases.labels(12, 4)
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(torch.nan)
    for more in ({}, {"num_random_vectors": 20, "num_lanczos_steps": 20}):
        snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, **(SEARCHED | more))
        assert snapshot.hessian is not None
        assert snapshot.hessian.status is SpectrumStatus.NONFINITE
        assert snapshot.hessian.eigenvalues.isnan().all()


def test_a_snapshot_with_curvature_is_saved_and_laid_out(tmp_path: Path) -> None:
    model, inputs, targets = smooth(), cases.normal(12, 6), cases.labels(12, 4)
    snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, **SEARCHED)
    assert "hessian, ggn" in repr(snapshot)
    snapshot.save(tmp_path / "snapshot.pt")
    loaded = condexp.Snapshot.load(tmp_path / "snapshot.pt")
    assert loaded.hessian is not None
    assert snapshot.hessian is not None
    assert torch.equal(loaded.hessian.density, snapshot.hessian.density)
    assert torch.equal(loaded.eigenvectors["ggn/0"], snapshot.eigenvectors["ggn/0"])
    frame = snapshot.to_pandas()
    record = snapshot["2"].hessian
    assert record is not None
    assert frame.loc["2", "hessian_lambda_max"] == record.lambda_max


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Detaching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return 2 * x * grads[0].detach()


class Applies(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function.apply(x)
        return result


def with_function(function: Any) -> nn.Module:
    return cases.randomised(nn.Sequential(nn.Linear(6, 5), Applies(function), nn.Linear(5, 4)))


def test_a_wrong_second_derivative_is_told() -> None:
    """No message of torch's: the matrix is not symmetric, as a search that goes on sees."""
    model, inputs, targets = with_function(Detaching), cases.normal(12, 6), cases.labels(12, 4)
    for more in ({}, {"num_random_vectors": 20, "num_lanczos_steps": 20}):
        options, start = AnalysisOptions(**(SEARCHED | more)), {"hessian/": torch.ones(1, 2)}
        start["ggn/"] = start["hessian/"]  # of another network: it says that both are certified
        found = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options, start=start)
        assert found.hessian is not None
        assert found.hessian.status is SpectrumStatus.UNRELIABLE
        assert found.hessian.eigenvalues.isnan().all()


def test_refusals() -> None:
    inputs, targets = cases.normal(12, 6), cases.labels(12, 4)
    for matrix in BOTH:
        with pytest.raises(InputError, match=r"a torch\.autograd\.Function that is once_diff"):
            condexp.analyze(with_function(Once), CROSS_ENTROPY, inputs, targets, matrices=(matrix,))
    model = smooth()
    with pytest.raises(InputError, match="computes in bfloat16: use network_precision='float64'"):
        condexp.analyze(
            smooth().bfloat16(), CROSS_ENTROPY, inputs.bfloat16(), targets, matrices=("hessian",)
        )
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match="computes in autocast"),
    ):
        condexp.analyze(smooth(), CROSS_ENTROPY, inputs, targets, matrices=("ggn",))
    with pytest.raises(InputError, match=r"a Recorder has the user's alone: use condexp\.analyze"):
        condexp.Recorder(model, ("hessian",))
    with pytest.raises(InputError, match=r"take .* GB of vectors, and memory_limit is 1e-06 GB"):
        condexp.analyze(
            model, CROSS_ENTROPY, inputs, targets, matrices=("hessian",), memory_limit=1000
        )
    for wrong, said in (
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"num_random_vectors": 1}, "num_random_vectors must be at least 2"),
        ({"num_lanczos_steps": 1}, "num_lanczos_steps must be at least 2"),
        ({"eigenvalue_tolerance": 0.0}, r"eigenvalue_tolerance must be a fraction in \(0, 1\)"),
    ):
        choices: Any = wrong
        with pytest.raises(InputError, match=said):
            condexp.analyze(model, CROSS_ENTROPY, inputs, targets, matrices=("ggn",), **choices)
