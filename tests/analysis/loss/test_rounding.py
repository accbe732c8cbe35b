"""A trained float32 net: the rounding of its loss's gradient is no eigenvalue."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers.calls import ForwardPass
from condexp.analysis.loss.rounding import LossRounding
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import WHOLE_MATRICES
from condexp.training.choices import RunState, Source
from condexp.training.loop import Plan, Trainer
from tests import cases
from tests.training.runs import Log

KAPPA_P = (0.25, 0.5, 0.75, 1.0)
OPTIONS = AnalysisOptions(matrices=WHOLE_MATRICES, kappa_p=KAPPA_P)


class Trained:
    """A float32 net with batch normalisation, trained to a loss of about 1e-3."""

    def __init__(self, num_classes: int, *, log_softmax: bool) -> None:
        torch.manual_seed(num_classes)
        self.num_classes = num_classes
        self.targets = torch.arange(128) % num_classes
        means = 2 * torch.randn(num_classes, 12)
        self.inputs = means[self.targets] + torch.randn(128, 12)
        self.model = nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes)
        )
        if log_softmax:
            self.model.append(nn.LogSoftmax(1))
        self.loss_fn = nn.NLLLoss() if log_softmax else nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.03)
        for _ in range(400):
            optimizer.zero_grad()
            loss = self.loss_fn(self.model(self.inputs), self.targets)
            loss.backward()
            optimizer.step()
        assert loss.item() < 2e-3

    def analyze(self, dtype: torch.dtype) -> Snapshot:
        model = copy.deepcopy(self.model).to(dtype)
        return condexp.analyze(
            model,
            self.loss_fn,
            self.inputs.to(dtype),
            self.targets,
            matrices=WHOLE_MATRICES,
            kappa_p=KAPPA_P,
        )

    def train_batch(self) -> Snapshot:
        class Batches:
            def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
                self._batch = batch

            def epoch(self, epoch: int = 0, *, first: int = 0) -> list[tuple[Tensor, Tensor]]:
                return [self._batch]

        log, model = Log(), copy.deepcopy(self.model)
        outcome = Trainer(
            model=model,
            loss_fn=self.loss_fn,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            learning_rate=lambda step: 0.0,
            batches=Batches((self.inputs, self.targets)),  # type: ignore[arg-type]
            plan=Plan(1, 1, (0,), (1,)),
            options=OPTIONS,
            source=Source.TRAIN_BATCH,
            evaluate=lambda model: (0.0, 0.0, 0.0, 0.0),
        ).train([log])
        assert outcome.state is RunState.COMPLETE
        return log.snapshots[0].snapshot


@pytest.fixture(scope="module", params=[(4, False), (10, False), (10, True)])
def trained(request: pytest.FixtureRequest) -> Trained:
    num_classes, log_softmax = request.param
    return Trained(num_classes, log_softmax=log_softmax)


@pytest.mark.parametrize("path", ["analyze", "train_batch"])
def test_a_trained_nets_gradients_have_the_rank_of_a_softmax(trained: Trained, path: str) -> None:
    rank = trained.num_classes - 1
    ours = trained.analyze(torch.float32) if path == "analyze" else trained.train_batch()
    record, exact = ours["3"], trained.analyze(torch.float64)["3"]
    assert record.grad_output
    assert record.kfac
    assert record.input
    assert record.weight_grad
    assert record.grad_output.rank == rank
    assert record.grad_output.kappa_interval(1.0)[1] == math.inf
    # A log-softmax is no layer's output, so that nobody knows of its null vector.
    assert (record.grad_output.kappa(1.0) == math.inf) == (len(trained.model) == 4)
    assert record.kfac.rank == record.input.rank * rank
    assert record.weight_grad.rank <= rank
    assert exact.grad_output
    assert exact.grad_output.rank == rank


def test_true_small_eigenvalues_stay(trained: Trained) -> None:
    rounded, exact = trained.analyze(torch.float32), trained.analyze(torch.float64)
    for name in rounded.layers:
        for matrix in ("input", "grad_output", "kfac"):
            one, other = getattr(rounded[name], matrix), getattr(exact[name], matrix)
            assert one.rank == other.rank
            for p in KAPPA_P:
                low, high = one.kappa_interval(p)
                assert low <= other.kappa(p) * 1.01, (name, matrix, p)
                # The 1 % that auto promises.
                if math.isfinite(high) and matrix != "kfac":
                    expected = pytest.approx(other.kappa(p), rel=0.01)
                    assert one.kappa(p) == expected, (name, matrix, p)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda f, y: F.cross_entropy(f, y),
    "sum": lambda f, y: F.cross_entropy(f, y, reduction="sum"),
    "weighted": lambda f, y: F.cross_entropy(f, y, weight=torch.tensor([1.0, 2, 5]).to(f)),
    "scaled": lambda f, y: 2.0**14 * F.cross_entropy(f, y) / 3,
    "binary": lambda f, y: F.binary_cross_entropy_with_logits(f, F.one_hot(y, 3).to(f)),
    "squares": lambda f, y: F.mse_loss(f, F.one_hot(y, 3).to(f)),
}


@pytest.mark.parametrize("known", [True, False], ids=["targets known", "seen"])
@pytest.mark.parametrize("form", FORMS)
def test_the_rounding_of_a_gradient_is_measured(form: str, known: bool) -> None:
    """Sure predictions: what is left of the gradient is 10⁻⁵, its rounding 10⁻⁸ of 1."""
    loss_fn, targets = FORMS[form], cases.labels(40, 3)
    sure = 12.0 * F.one_hot(targets, 3).float() + cases.normal(40, 3).float()
    outputs = (sure - 11.0 if form == "binary" else sure).requires_grad_()
    exact = outputs.detach().double().requires_grad_()
    of_exact = torch.autograd.grad(loss_fn(exact, targets), exact)[0]
    rounding = LossRounding()
    if known:
        rounding.expect(loss_fn, outputs, targets)
    hook = rounding.output_hook(outputs, ForwardPass(0, 40, 40.0))
    grad = torch.autograd.grad(loss_fn(outputs, targets), outputs)[0]
    hook(grad)
    expected = float((grad.double() - of_exact).square().sum() / of_exact.square().sum())
    if form == "squares" and not known:
        assert rounding.relative_square() == 0  # f − y, with all its digits
    else:
        assert rounding.relative_square() == pytest.approx(expected, rel=0.2, abs=1e-15)
    assert rounding.has_zero_sums == (form not in {"binary", "squares"})
    if not known:
        scales = {"cross-entropy": 40, "sum": 1, "scaled": 120 / 2**14}
        found = None if rounding.scale is None else 1 / rounding.scale
        assert found == (pytest.approx(scales[form], rel=1e-3) if form in scales else None)


def test_a_log_softmax_hides_the_difference_in_its_backward_pass() -> None:
    logits, targets = 9 * F.one_hot(cases.labels(40, 3), 3).float(), cases.labels(40, 3)
    outputs = logits.log_softmax(1).requires_grad_()
    rounding = LossRounding()
    hook = rounding.output_hook(outputs, ForwardPass(0, 40, 40.0))
    hook(torch.autograd.grad(F.nll_loss(outputs, targets), outputs)[0])
    difference = outputs.detach().double().exp() - F.one_hot(targets, 3)
    expected = 40 * torch.finfo(torch.float32).eps ** 2 / float(difference.square().sum())
    assert rounding.relative_square() == pytest.approx(expected, rel=1e-3)


def test_without_a_gradient_nothing_is_added() -> None:
    rounding, current = LossRounding(), ForwardPass(0, 2, 2.0)
    assert rounding.relative_square() == 0
    rounding.output_hook(torch.zeros(2, 3), current)(torch.zeros(2, 3))
    assert rounding.relative_square() == 0
    rounding.output_hook(torch.zeros(2, 3), current)(torch.full((2, 3), math.nan))
    assert rounding.relative_square() == 0
    assert not rounding.has_zero_sums


@pytest.mark.parametrize("scale", [1e-4, 10**-4.5])
def test_auto_answers_for_the_kronecker_product(scale: float) -> None:
    """κ_0.5 of the product reads eigenvalues of the factors that no κ_0.5 of a factor does."""
    torch.manual_seed(0)
    columns = torch.logspace(0, math.log10(scale), 10)
    inputs, targets = torch.randn(200, 10) * columns, torch.arange(200) % 2
    model = nn.Sequential(nn.Linear(10, 2))
    kappas = [
        condexp.analyze(
            model,
            nn.CrossEntropyLoss(),
            inputs,
            targets,
            matrices=("kfac",),
            kappa_p=(0.5,),
            precision=precision,
        )["0"].kfac
        for precision in ("auto", "float64")
    ]
    auto, exact = kappas
    assert auto
    assert exact
    assert auto.kappa(0.5) == pytest.approx(exact.kappa(0.5), rel=0.01)


class Again(nn.Module):
    """One layer used twice: on isotropic rows, then on rows 10⁴ times as long in one direction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        along = x * torch.tensor([1.4e4, 0, 0, 0, 0, 0], dtype=x.dtype)
        out: Tensor = self.shared(x) + 1e-4 * self.shared(along)
        return out


def test_auto_measures_a_reused_module_in_float64() -> None:
    torch.manual_seed(1)
    model, inputs, targets = Again(), torch.randn(100, 6), torch.arange(100) % 6
    answers = []
    for precision in ("auto", "float64"):
        snapshot = condexp.analyze(
            model, nn.CrossEntropyLoss(), inputs, targets, precision=precision
        )
        spectrum = snapshot["shared"].input
        assert spectrum
        answers.append(spectrum.kappa(1.0))
    auto, exact = answers
    assert 1e8 < exact < 1e9
    assert auto == pytest.approx(exact, rel=0.01)


def test_named_layers_are_taken_in_float64_at_once() -> None:
    model, inputs, targets = Again(), torch.randn(50, 6), torch.arange(50) % 6
    options = replace(AnalysisOptions(("input",)), float64=("shared",))  # type: ignore[arg-type]
    with MeasurementHooks(model, options) as recorder:
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    spectrum = recorder.snapshot()["shared"].input
    assert spectrum
    assert spectrum.dtype == torch.float64


def test_merged_weight_gradients_are_weighted_by_their_denominators() -> None:
    """Uneven numbers of ignored targets, against the one big batch."""
    model, inputs = cases.mlp(), cases.normal(12, 4)
    targets = cases.labels(12, 3)
    targets[[0, 1, 2, 3, 9]] = -1
    loss_fn = nn.CrossEntropyLoss(ignore_index=-1)
    options = AnalysisOptions(WHOLE_MATRICES)
    batches = list(zip(torch.split(inputs, 5), torch.split(targets, 5), strict=True))
    merged = analyze_batches(model, loss_fn, batches, options)
    whole = analyze_batches(model, loss_fn, [(inputs, targets)], options)
    for name in whole.layers:
        one, other = merged[name].weight_grad, whole[name].weight_grad
        assert one
        assert other
        assert float((one.eigenvalues - other.eigenvalues).abs().max()) < 1e-10 * other.lambda_max
        assert merged[name].grad_norm == pytest.approx(whole[name].grad_norm, rel=1e-10)
