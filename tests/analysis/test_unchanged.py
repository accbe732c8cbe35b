"""Analysing changes nothing: bit for bit, in every state, also after an exception anywhere."""

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.measurement import Measurement
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix
from tests import cases

LOSS = nn.CrossEntropyLoss()


class Noisy(nn.Module):
    """Draws from every random state, keeps a buffer it replaces, and BN in different modes."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(0.3)
        )
        self.frozen_norm = nn.BatchNorm1d(5).eval()
        self.register_buffer("count", torch.zeros(1))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        x = x + 1e-3 * random.random() + 1e-3 * np.random.random()
        out: Tensor = self.fc(self.frozen_norm(self.body(x)))
        return out


def noisy() -> tuple[nn.Module, Tensor]:
    model = cases.randomised(Noisy())
    model.body[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    return model, cases.normal(6, 4)


def residual() -> tuple[nn.Module, Tensor]:
    return cases.resnet(), cases.normal(6, 2, 8, 8)


@pytest.fixture(params=[noisy, residual])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A model in the middle of training: gradients in place, statistics moved."""
    model, inputs = request.param()
    LOSS(model(inputs), cases.labels(6, 3)).backward()
    return model, inputs


@dataclass(frozen=True)
class State:
    """Everything that must stay, as bytes and identities."""

    tensors: dict[str, tuple[int, bytes]]
    gradients: dict[str, tuple[int, bytes] | None]
    modes: dict[str, bool]
    hooks: int
    random_states: tuple[bytes, str, str]
    inputs: bytes


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def num_hooks(model: nn.Module) -> int:
    modules = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )
    return modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


def state_of(model: nn.Module, inputs: Tensor) -> State:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    gradients = {n: p.grad for n, p in model.named_parameters()}
    return State(
        tensors={name: (id(t), as_bytes(t)) for name, t in tensors},
        gradients={n: None if g is None else (id(g), as_bytes(g)) for n, g in gradients.items()},
        modes={name: module.training for name, module in model.named_modules()},
        hooks=num_hooks(model),
        random_states=(
            as_bytes(torch.get_rng_state()),
            repr(random.getstate()),
            repr(np.random.get_state()),
        ),
        inputs=as_bytes(inputs),
    )


@pytest.mark.parametrize("training", [True, False])
def test_analysing_changes_nothing(case: tuple[nn.Module, Tensor], training: bool) -> None:
    model, inputs = case
    model.train(training)
    targets, options = cases.labels(6, 3), AnalysisOptions()
    before = state_of(model, inputs)
    condexp.analyze(model, LOSS, inputs, targets)
    assert state_of(model, inputs) == before
    analyze_batches(model, LOSS, [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])], options)
    assert state_of(model, inputs) == before
    trace_layers(model, inputs[:2], options)
    assert state_of(model, inputs) == before
    with torch.no_grad():
        condexp.analyze(model, LOSS, inputs, targets)
    assert state_of(model, inputs) == before


@pytest.mark.parametrize("training", [True, False])
def test_products_with_vectors_change_nothing(
    case: tuple[nn.Module, Tensor], training: bool
) -> None:
    """Running statistics, a buffer that is replaced, random states; whole and searched."""
    model, inputs = case
    model.train(training)
    targets = cases.labels(6, 3)
    before = state_of(model, inputs)
    for num in (2, 10):
        options = AnalysisOptions.of(
            ("hessian", "ggn"), {"num_random_vectors": num, "num_lanczos_steps": num}
        )
        condexp.analyze(model, LOSS, inputs, targets, options)
        assert state_of(model, inputs) == before
        batches = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
        analyze_batches(model, LOSS, batches, options)
        assert state_of(model, inputs) == before


def test_an_exception_in_a_pass_for_products_changes_nothing(
    case: tuple[nn.Module, Tensor],
) -> None:
    model, inputs = case
    before = state_of(model, inputs)
    for module, failure in interruptions(model):
        loss_fn = LOSS if module else failure
        handle = module.register_forward_hook(failure) if module else None
        batches = [(inputs, cases.labels(6, 3))]
        measurement = Measurement(model, loss_fn, batches, AnalysisOptions((Matrix.HESSIAN,)))
        with pytest.raises(BoomError):
            measurement.curvature()
        if handle is not None:
            handle.remove()
        assert state_of(model, inputs) == before


FISHER = ("fisher", "kfac")


@pytest.mark.parametrize("fisher_type", ["empirical", "mc", "exact"])
def test_an_exact_fisher_matrix_changes_nothing(
    case: tuple[nn.Module, Tensor], fisher_type: str
) -> None:
    model, inputs = case
    model.train(fisher_type == "empirical")
    targets = cases.labels(6, 3)
    options = AnalysisOptions.of(FISHER, {"fisher_type": fisher_type})
    before = state_of(model, inputs)
    condexp.analyze(
        model, LOSS, inputs, targets, FISHER, fisher_type=fisher_type, memory_limit=10**6
    )
    assert state_of(model, inputs) == before
    analyze_batches(model, LOSS, [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])], options)
    assert state_of(model, inputs) == before


class BoomError(Exception):
    """Raised on purpose."""


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise BoomError


def fail_in_forward(*_: object, **__: object) -> None:
    raise BoomError


def fail_in_backward(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
    result: Tensor = FailingBackward.apply(output)
    return result


def failing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise BoomError


def interruptions(model: nn.Module) -> Iterator[tuple[nn.Module | None, Any]]:
    """After and inside every module, in both directions, and in the loss."""
    for module in model.modules():
        if not list(module.children()):
            yield module, fail_in_forward
            yield module, fail_in_backward
    yield None, failing_loss


def test_an_exception_at_any_point_changes_nothing(case: tuple[nn.Module, Tensor]) -> None:
    model, inputs = case
    targets, options = cases.labels(6, 3), AnalysisOptions()
    before = state_of(model, inputs)
    num_interruptions = 0
    for module, failure in interruptions(model):
        loss_fn = LOSS if module else failure
        handle = module.register_forward_hook(failure) if module else None
        with pytest.raises(BoomError):
            condexp.analyze(model, loss_fn, inputs, targets)
        if failure is fail_in_forward:
            with pytest.raises(BoomError):
                trace_layers(model, inputs, options)
        if handle is not None:
            handle.remove()
        assert state_of(model, inputs) == before
        num_interruptions += 1
    assert num_interruptions > 10


def test_an_exception_in_the_analysis_itself_changes_nothing(
    case: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward hooks (input), in the backward hooks (grad_output), in the spectra."""
    model, inputs = case
    before = state_of(model, inputs)
    for target in ("moment_rows", "gradient_rows", "mean_fraction", "describe"):
        with monkeypatch.context() as patch:
            patch.setattr(f"condexp.analysis.statistics.layer.{target}", fail_in_forward)
            with pytest.raises(BoomError):
                condexp.analyze(model, LOSS, inputs, cases.labels(6, 3))
        assert state_of(model, inputs) == before


@pytest.mark.parametrize(
    "target",
    [
        "fisher.block.LayerCall",
        "layers.calls.grad_output_rows",
        "fisher.block.grams",
        "measurement.back_propagate_loss",
    ],
)
def test_an_exception_in_the_exact_fisher_matrix_changes_nothing(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward hooks, in the backward hooks, in the products, between the cotangents."""
    model, inputs = cases.resnet().eval(), cases.normal(6, 2, 8, 8)
    before = state_of(model, inputs)
    monkeypatch.setattr(f"condexp.analysis.{target}", fail_in_forward)
    with pytest.raises(BoomError):
        condexp.analyze(model, LOSS, inputs, cases.labels(6, 3), FISHER, fisher_type="exact")
    assert state_of(model, inputs) == before


def test_no_gradient_appears_where_there_was_none() -> None:
    model = cases.mlp()
    condexp.analyze(model, LOSS, cases.normal(4, 4), cases.labels(4, 3))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inputs_survive_a_first_operation_in_place() -> None:
    inputs = cases.normal(4, 4)
    before = inputs.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), cases.mlp())
    condexp.analyze(model, LOSS, inputs, cases.labels(4, 3))
    trace_layers(model, inputs, AnalysisOptions())
    assert torch.equal(inputs, before)


def test_a_pending_graph_of_the_users_survives() -> None:
    """Buffers that did not change are not written: autograd would notice."""
    model = cases.mlp(batch_norm=True).eval()
    inputs, targets = cases.normal(4, 4), cases.labels(4, 3)
    loss = LOSS(model(inputs), targets)
    condexp.analyze(model, LOSS, inputs, targets)
    loss.backward()


def test_left_as_found_restores_after_the_worst() -> None:
    model = cases.mlp(batch_norm=True)
    inputs = cases.normal(4, 4)
    before = state_of(model, inputs)
    with pytest.raises(BoomError):
        wreak_havoc(model)
    assert state_of(model, inputs) == before


def wreak_havoc(model: nn.Module) -> None:
    with preserved_state(model):
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                module.running_mean.fill_(float("nan"))
                module.running_var = torch.zeros(1)
                module.register_buffer("another", torch.zeros(1))
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(1)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        raise BoomError


Analysis = Callable[[nn.Module, Tensor, Tensor], Any]


def probe(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    batches = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    analyze_batches(model, LOSS, batches, AnalysisOptions())


def whole(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    condexp.analyze(model, LOSS, inputs, targets, ("weight", "weight_grad", "kfac", "fisher"))


def failing(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(BoomError):
        condexp.analyze(model, failing_loss, inputs, targets)


def train(case: Callable[[], tuple[nn.Module, Tensor]], analysis: Analysis | None) -> list[bytes]:
    """Ten steps; the bytes of every loss, then of everything at the end."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    model, inputs = case()
    targets = cases.labels(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trace = []
    for _ in range(10):
        if analysis is not None and analysis is not recorded:
            analysis(model, inputs, targets)
        optimizer.zero_grad()
        matrices = ("grad_output", "kfac", "fisher")
        around = condexp.Recorder(model, matrices) if analysis is recorded else nullcontext()
        with around as recorder:
            loss = LOSS(model(inputs), targets)
            loss.backward()
        optimizer.step()
        if recorder is not None:
            assert recorder.snapshot().num_samples == 6
        trace.append(as_bytes(loss))
    assert num_hooks(model) == 0
    trace += [as_bytes(tensor) for tensor in model.state_dict().values()]
    return [*trace, *(as_bytes(p.grad) for p in model.parameters() if p.grad is not None)]


def recorded(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Stands for a recorder around the training pass itself."""


@pytest.mark.parametrize("case", [noisy, residual])
@pytest.mark.parametrize("analysis", [whole, probe, failing, recorded])
def test_training_with_analysis_is_bit_identical(
    case: Callable[[], tuple[nn.Module, Tensor]], analysis: Analysis
) -> None:
    assert train(case, analysis) == train(case, None)
