"""A pass through a float64 copy of the network: against a copy made by hand; nothing changes."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.float64_network import float64_network, widened
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.errors import InputError
from tests import cases
from tests.analysis import oracles
from tests.analysis.test_unchanged import Noisy, noisy, residual, state_of, train

LOSS = nn.CrossEntropyLoss()
MATRICES = ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad")


def float32(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    return model.float(), inputs.float()


def assert_same(one: Snapshot, other: Snapshot) -> None:
    """Of the same operations in the same order: equal but for the threads' sums."""
    assert one.layers == other.layers
    for name in one.layers:
        for matrix in MATRICES:
            mine, others = getattr(one[name], matrix), getattr(other[name], matrix)
            scale = float(others.lambda_max)
            if matrix != "kfac":
                torch.testing.assert_close(
                    mine.eigenvalues, others.eigenvalues, rtol=1e-12, atol=1e-15 * scale
                )
            assert math.isclose(mine.lambda_max, others.lambda_max, rel_tol=1e-12)
        for measure in ("weight_norm", "grad_norm", "effective_lr", "input_mean_fraction"):
            assert math.isclose(
                getattr(one[name], measure), getattr(other[name], measure), rel_tol=1e-9
            )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [cases.resnet, partial(cases.mlp, batch_norm=True)])
def test_it_is_the_copy_that_double_makes(build: Callable[[], nn.Module], training: bool) -> None:
    is_mlp = build is not cases.resnet
    shape = (6, 4) if is_mlp else (6, 2, 8, 8)
    model, inputs = float32(build(), cases.normal(*shape))
    model.train(training)
    targets = cases.labels(6, 3)
    other = copy.deepcopy(model).double()
    measured = condexp.analyze(
        model, LOSS, inputs, targets, MATRICES, learning_rate=0.1, network_precision="float64"
    )
    by_hand = condexp.analyze(other, LOSS, inputs.double(), targets, MATRICES, learning_rate=0.1)
    assert_same(measured, by_hand)


class Draws(nn.Module):
    """Draws of several kinds, whose numbers in float64 are others than in float32."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.second(hidden * self.draw(hidden))
        return out


def in_place(x: Tensor) -> Tensor:
    return torch.empty_like(x).exponential_()


def in_place_transposed(x: Tensor) -> Tensor:
    return torch.empty_like(x.T).normal_().T


def of_type(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype)


def bernoulli(x: Tensor) -> Tensor:
    return torch.bernoulli(torch.full_like(x, 0.6))


def native_dropout(x: Tensor) -> Tensor:
    return torch.native_dropout(torch.ones_like(x), 0.4, True)[0]


def distribution(x: Tensor) -> Tensor:
    drawn: Tensor = torch.distributions.Normal(torch.zeros_like(x), 1.0).rsample()
    return drawn


DRAWS: list[Callable[[Tensor], Tensor]] = [
    torch.rand_like,
    torch.randn_like,
    in_place,
    in_place_transposed,
    of_type,
    bernoulli,
    native_dropout,
    distribution,
    lambda x: F.dropout(torch.ones_like(x), 0.5),
    lambda x: F.gumbel_softmax(torch.ones_like(x)),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_what_is_drawn_is_what_float32_draws(draw: Callable[[Tensor], Tensor]) -> None:
    model, inputs = float32(cases.randomised(Draws(draw)), cases.normal(50, 4))
    drawn = []

    def note(x: Tensor) -> Tensor:
        drawn.append(draw(x))
        return drawn[-1]

    object.__setattr__(model, "draw", note)
    state = torch.get_rng_state()
    with torch.no_grad():
        model(inputs)
    torch.set_rng_state(state)
    with torch.no_grad(), float64_network(model, LOSS):
        model(inputs.double())
    as_trained, exact = drawn
    assert (as_trained.dtype, exact.dtype) == (torch.float32, torch.float64)
    # Equal as drawn; a softmax or a scale 1/(1 − p) is rounded by the one and not by the other.
    torch.testing.assert_close(exact, as_trained.double(), rtol=1e-6, atol=1e-7)


def dropout_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 9),
        nn.Dropout(0.4),
        nn.ReLU(),
        nn.Linear(9, 5),
        nn.Dropout(0.5),
        nn.Linear(5, 3),
    )


class Masked(nn.Module):
    """Multiplies by a mask that is given, as dropout does by one that is drawn."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_dropout_has_the_masks_of_the_trained_pass() -> None:
    """The oracle: the masks are read off the float32 pass, and applied in a float64 copy."""
    model, inputs = float32(cases.randomised(dropout_net()), cases.normal(40, 4))
    targets = cases.labels(40, 3)
    masks: list[Tensor] = []
    state = torch.get_rng_state()
    handles = [
        module.register_forward_hook(lambda _, args, out: masks.append(out / args[0]))
        for module in model.modules()
        if isinstance(module, nn.Dropout)
    ]
    model(inputs)
    for handle in handles:
        handle.remove()
    torch.set_rng_state(state)
    measured = condexp.analyze(
        model, LOSS, inputs, targets, MATRICES, learning_rate=0.1, network_precision="float64"
    )
    assert torch.equal(torch.get_rng_state(), state)
    by_hand = copy.deepcopy(model).double()
    for place, mask in zip(("1", "4"), masks, strict=True):
        dropout = model.get_submodule(place)
        assert isinstance(dropout, nn.Dropout)
        by_hand.register_module(place, Masked((mask.nan_to_num() > 0.5).double() / (1 - dropout.p)))
    expected = condexp.analyze(by_hand, LOSS, inputs.double(), targets, MATRICES, learning_rate=0.1)
    assert_same(measured, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_draw_the_same_again(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = dropout_net(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_() if x.is_leaf else x
            hidden = checkpoint(self.body, x, use_reentrant=reentrant)
            out: Tensor = self.fc(hidden)
            return out

    class Plain(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.body(x))
            return out

    model, inputs = float32(cases.randomised(Checkpointed()), cases.normal(20, 4))
    plain = cases.randomised(Plain()).float()
    targets = cases.labels(20, 3)
    found = [
        condexp.analyze(m, LOSS, inputs, targets, network_precision="float64")
        for m in (model, plain)
    ]
    for name in found[1].layers:
        for matrix in ("input", "grad_output"):
            mine, other = (getattr(snapshot[name], matrix).eigenvalues for snapshot in found)
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-18)


def test_a_null_vector_that_rounding_hides() -> None:
    """LayerNorm of inputs with mean = 100 σ: its outputs sum to 0, but for their rounding."""
    model = nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    inputs = (cases.normal(200, 8) + 100).float()
    targets = cases.labels(200, 3)
    smallest = {}
    for precision in ("as_trained", "float64"):
        found = condexp.analyze(
            model, LOSS, inputs, targets, ("input",), network_precision=precision
        )["1"].input
        assert found is not None
        smallest[precision] = float(found.eigenvalues[-1] / found.lambda_max)
    assert found is not None
    assert found.rank == 7
    assert math.isinf(found.kappa_interval(1.0)[1])
    # (eps·mean/σ)² of each type.
    assert smallest["float64"] < 1e-20 < smallest["as_trained"]


@pytest.mark.parametrize("make", [noisy, residual])
def test_looking_changes_nothing(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, inputs = float32(*make())
    targets = cases.labels(6, 3)
    LOSS(model(inputs), targets).backward()
    before = state_of(model, inputs)
    condexp.analyze(model, LOSS, inputs, targets, network_precision="float64")
    assert state_of(model, inputs) == before
    options = AnalysisOptions(network_precision="float64")  # type: ignore[arg-type]
    analyze_batches(model, LOSS, [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])], options)
    assert state_of(model, inputs) == before

    def fail(*_: object) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        condexp.analyze(model, fail, inputs, targets, network_precision="float64")
    assert state_of(model, inputs) == before


def test_a_pending_graph_and_its_optimizer_survive() -> None:
    model, inputs = float32(cases.mlp(batch_norm=True), cases.normal(6, 4))
    targets = cases.labels(6, 3)
    calls: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(calls.append)  # type: ignore[no-untyped-call]
    loss = LOSS(model.eval()(inputs), targets)
    condexp.analyze(model, LOSS, inputs, targets, network_precision="float64")
    assert calls == []
    loss.backward()
    assert len(calls) == len(list(model.parameters()))


class Keeper(nn.Module):
    """Keeps a table of its input's type beside its buffers, as position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.dtype != x.dtype:
            self.table = torch.linspace(0, 1, 4, dtype=x.dtype)
            self.another = self.table * 2
        out: Tensor = self.fc(x + self.table)
        return out


@pytest.mark.parametrize("was_called", [True, False])
def test_what_a_module_keeps_besides_is_put_back(was_called: bool) -> None:
    model, inputs, targets = Keeper(), cases.normal(6, 4).float(), cases.labels(6, 3)
    if was_called:
        model(inputs)
    before = dict(vars(model))
    condexp.analyze(model, LOSS, inputs, targets, network_precision="float64")
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())


def test_a_forward_that_was_replaced_by_a_closure_runs_in_float64() -> None:
    model, inputs, targets = cases.mlp().float(), cases.normal(6, 4).float(), cases.labels(6, 3)
    expected = condexp.analyze(
        copy.deepcopy(model).double(), LOSS, inputs.double(), targets, MATRICES, learning_rate=0.1
    )
    plain: Callable[[Tensor], Tensor] = model.forward
    object.__setattr__(model, "forward", lambda x: plain(x))
    measured = condexp.analyze(
        model, LOSS, inputs, targets, MATRICES, learning_rate=0.1, network_precision="float64"
    )
    assert_same(measured, expected)


def test_recurrent_layers_keep_a_list_of_their_weights() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(4, 5, 2, dropout=0.3, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.rnn(x)[0][:, -1])
            return out

    model, inputs, targets = Recurrent(), cases.normal(6, 7, 4).float(), cases.labels(6, 3)
    before = [id(weight) for weight in model.rnn._flat_weights]
    snapshot = condexp.analyze(
        model, LOSS, inputs, targets, layers=["fc"], network_precision="float64"
    )
    assert snapshot["fc"].input is not None
    assert [id(weight) for weight in model.rnn._flat_weights] == before
    model(inputs)


def test_weights_that_are_shared_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    weight = model[0].weight
    with float64_network(model, LOSS):
        assert model[2].weight is model[0].weight
        assert model[0].weight.dtype == torch.float64
    assert model[2].weight is model[0].weight is weight


def test_losses_and_targets_are_converted() -> None:
    model, inputs = cases.mlp().float(), cases.normal(6, 4).float()
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    for targets in (cases.labels(6, 3), torch.softmax(cases.normal(6, 3, seed=9).float(), 1)):
        condexp.analyze(model, loss_fn, inputs, targets, network_precision="float64")
    assert loss_fn.weight is not None
    assert loss_fn.weight.dtype == torch.float32
    pair = (torch.ones(2), [torch.ones(1)], {"a": torch.ones(1, dtype=torch.int64)}, "b")
    wide = widened(pair)
    kinds = (wide[0].dtype, wide[1][0].dtype, wide[2]["a"].dtype)
    assert kinds == (torch.float64, torch.float64, torch.int64)
    assert wide[3] == "b"


class Rounds(nn.Module):
    def __init__(self, rounds: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.rounds = nn.Linear(4, 3), rounds

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.rounds(x).type_as(x))
        return out


@pytest.mark.parametrize(
    "rounds",
    [
        lambda x: x.float(),
        lambda x: torch.zeros(x.shape).copy_(x),
        lambda x: torch.softmax(x, 1, dtype=torch.float32),
        lambda x: x.sum(1, keepdim=True, dtype=torch.float32) + x,
    ],
)
def test_a_model_that_rounds_on_its_way_is_refused(rounds: Callable[[Tensor], Tensor]) -> None:
    model, inputs, targets = Rounds(rounds), cases.normal(6, 4).float(), cases.labels(6, 3)
    condexp.analyze(model, LOSS, inputs, targets)
    with pytest.raises(InputError, match=r"itself rounds to torch.float32 .* 'as_trained'|as_tr"):
        condexp.analyze(model, LOSS, inputs, targets, network_precision="float64")


def test_draws_that_cannot_be_made_equal_are_refused() -> None:
    inputs, targets = cases.normal(6, 4).float(), cases.labels(6, 3)

    def refused(model: nn.Module, match: str) -> None:
        with pytest.raises(InputError, match=match):
            condexp.analyze(model, LOSS, inputs, targets, network_precision="float64")

    refused(Draws(lambda x: F.rrelu(x, training=True)), "draws random numbers by aten::rrelu_with")
    refused(Draws(lambda x: torch.normal(x, 1.0)), "by aten::normal, which draws others in float64")
    mixed = Draws(torch.randn_like)
    mixed.register_parameter("other", nn.Parameter(torch.ones(2, dtype=torch.float16)))
    refused(mixed, "weights are of several types")
    query = torch.ones(1, 2, 3, device="meta")
    model = cases.mlp().float()
    with float64_network(model, LOSS), pytest.raises(InputError, match="fused kernel on meta"):
        F.scaled_dot_product_attention(query, query, query, dropout_p=0.1)


def test_tensors_kept_elsewhere_are_named_as_the_cause() -> None:
    weight = torch.ones(3)
    model, inputs, targets = cases.mlp().float(), cases.normal(6, 4).float(), cases.labels(6, 3)
    loss_fn = partial(F.cross_entropy, weight=weight)
    with pytest.raises(RuntimeError) as raised:
        condexp.analyze(model, loss_fn, inputs, targets, network_precision="float64")
    assert "register them as buffers" in raised.value.__notes__[0]


def test_a_recorder_refuses_it_and_names_the_way_out() -> None:
    with pytest.raises(InputError, match=r"use condexp\.analyze, or record a pass through copy"):
        condexp.Recorder(cases.mlp(), network_precision="float64")


def test_autocast_around_it_is_off() -> None:
    model, inputs, targets = cases.mlp().float(), cases.normal(6, 4).float(), cases.labels(6, 3)
    choices: dict[str, Any] = {"network_precision": "float64", "learning_rate": 0.1}
    expected = condexp.analyze(model, LOSS, inputs, targets, MATRICES, **choices)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(condexp.analyze(model, LOSS, inputs, targets, MATRICES, **choices), expected)


def in_float64(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    condexp.analyze(model, LOSS, inputs, targets, network_precision="float64")


def test_training_with_it_is_bit_identical() -> None:
    def case() -> tuple[nn.Module, Tensor]:
        return float32(*noisy())

    assert train(case, in_float64) == train(case, None)
    assert isinstance(case()[0], Noisy)


def test_attention_without_dropout_draws_nothing() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(model, nn.Flatten(), nn.Linear(40, 3))
    inputs, targets = torch.randn(6, 5, 8), torch.arange(6) % 3
    loss_fn = nn.CrossEntropyLoss()
    given = condexp.analyze(net, loss_fn, inputs, targets, network_precision="float64")
    twin = copy.deepcopy(net).double()
    expected = condexp.analyze(twin, loss_fn, inputs.double(), targets)
    for one, other in zip(given.records, expected.records, strict=True):
        oracles.same(one.grad_output, other.grad_output)
