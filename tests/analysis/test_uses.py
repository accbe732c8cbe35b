"""All uses of a weight, whoever makes them, and what tells of those that are not seen."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import condexp
from condexp.analysis.layers.kinds import layer_of
from condexp.analysis.layers.uses import watched
from condexp.analysis.recorder import Recorder
from condexp.errors import InputError
from tests import cases
from tests.analysis import oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
FACTORS = ("input", "grad_output", "kfac")
ALL = (*FACTORS, "fisher", "weight_grad")


class Tokens(nn.Module):
    """Linear layers on [N, T, d], one of them twice, with what may be done to their outputs."""

    def __init__(self, act: Callable[[Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 6, bias=bias), nn.Linear(6, 6, bias=bias)
        self.fc, self.act = nn.Linear(6, 3), act
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        h = torch.tanh(self.b(self.act(self.b(torch.tanh(h)))))
        out: Tensor = self.fc(h.mean(1))
        return out


def add_in_place(h: Tensor) -> Tensor:
    h += 1.0
    return h


def scale_in_place(h: Tensor) -> Tensor:
    return h.mul_(0.5)


IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu_": (F.relu_, F.relu),
    "+=": (add_in_place, lambda h: h + 1.0),
    "mul_": (scale_in_place, lambda h: h * 0.5),
    "Dropout": (nn.Dropout(0.0, inplace=True), lambda h: h),
}


def same(given: condexp.Snapshot, expected: condexp.Snapshot, matrices: tuple[str, ...]) -> None:
    assert given.layers == expected.layers
    for name in expected.layers:
        for matrix in matrices:
            one, other = getattr(given[name], matrix), getattr(expected[name], matrix)
            if matrix == "kfac":
                assert one.lambda_max == pytest.approx(other.lambda_max, rel=1e-10)
            else:
                oracles.same(one, other)
        assert given[name].info.uses == expected[name].info.uses
        assert given[name].gradient_residual < 1e-12


@pytest.mark.parametrize("matrices", [FACTORS, ("fisher",)], ids=["factors", "fisher"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("act", IN_PLACE)
def test_an_operation_in_place_loses_no_gradient(
    act: str, bias: bool, matrices: tuple[str, ...]
) -> None:
    """With a bias the output on [N, T, d] is a view, whose history the operation replaces."""
    inputs, targets = cases.normal(7, 4, 5), cases.labels(7, 3)
    in_place, plain = (
        condexp.analyze(Tokens(f, bias=bias), CROSS_ENTROPY, inputs, targets, matrices)
        for f in IN_PLACE[act]
    )
    same(in_place, plain, matrices)


class Net(nn.Module):
    """Two hidden layers; how the second is applied is up to the test."""

    def __init__(self, apply: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.apply_b = apply
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.apply_b(self.b, torch.tanh(self.a(x))))
        out: Tensor = self.c(torch.tanh(self.b(h)))
        return out


def analysed(net: nn.Module, matrices: tuple[str, ...] = ALL) -> condexp.Snapshot:
    inputs, targets = cases.normal(12, 5), cases.labels(12, 3)
    return condexp.analyze(net, CROSS_ENTROPY, inputs, targets, matrices)


WAYS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "function": lambda b, h: F.linear(h, b.weight, b.bias),
    "keywords": lambda b, h: F.linear(h, weight=b.weight, bias=b.bias),
    "non-reentrant checkpoint": lambda b, h: checkpoint(b, h, use_reentrant=False),
    "re-entrant checkpoint": lambda b, h: checkpoint(b, h, use_reentrant=True),
}


@pytest.mark.parametrize("fisher_type", ["empirical", "mc", "exact"])
@pytest.mark.parametrize("way", WAYS)
def test_every_use_counts(way: str, fisher_type: str) -> None:
    inputs, targets = cases.normal(12, 5), cases.labels(12, 3)
    given, expected = (
        condexp.analyze(Net(apply), CROSS_ENTROPY, inputs, targets, ALL, fisher_type=fisher_type)
        for apply in (WAYS[way], lambda b, h: b(h))
    )
    same(given, expected, ALL)
    assert given["b"].info.uses == 2


def test_a_checkpointed_segment_may_use_a_layer_twice_and_passes_add_up() -> None:
    def segment(net: Net, x: Tensor) -> Tensor:
        out: Tensor = net.c(torch.tanh(net.b(torch.tanh(net.b(torch.tanh(net.a(x)))))))
        return out

    class Segments(Net):
        reentrant: bool | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.reentrant is None:
                return segment(self, x)
            x = x + torch.zeros((), dtype=x.dtype, requires_grad=True)
            out: Tensor = checkpoint(lambda z: segment(self, z), x, use_reentrant=self.reentrant)
            return out

    inputs, targets = cases.normal(12, 5), cases.labels(12, 3)
    snapshots = []
    for reentrant in (None, False, True):
        net = Segments(lambda b, h: b(h))
        net.reentrant = reentrant
        with Recorder(net, ("input", "grad_output", "weight_grad"), denominator=12.0) as recorder:
            for x, y in zip(inputs.chunk(3), targets.chunk(3), strict=True):
                (CROSS_ENTROPY(net(x), y) / 3).backward()
        snapshots.append(recorder.snapshot())
        grad = net.b.weight.grad
        assert grad is not None
        assert snapshots[-1]["b"].grad_norm == pytest.approx(float(grad.norm()), rel=1e-12)
    for snapshot in snapshots[1:]:
        same(snapshot, snapshots[0], ("input", "grad_output", "weight_grad"))
        assert snapshot.num_samples == 12


UNSEEN: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "matmul": lambda b, h: h @ b.weight.T + b.bias,
    "einsum": lambda b, h: torch.einsum("ni,oi->no", h, b.weight) + b.bias,
    "a copy": lambda b, h: F.linear(h, b.weight * 1, b.bias),
}


@pytest.mark.parametrize("way", UNSEEN)
def test_a_use_that_was_not_seen_makes_a_layer_incomplete(way: str) -> None:
    snapshot = analysed(Net(UNSEEN[way]))
    record = snapshot["b"]
    assert record.gradient_residual > 1e-3
    assert record.incomplete is not None
    assert "exclude=['b']" in record.incomplete
    for matrix in ALL:
        spectrum = getattr(record, matrix)
        assert spectrum.status == "incomplete"
        assert spectrum.kappa(0.5) != spectrum.kappa(0.5)
        assert spectrum.lambda_max != spectrum.lambda_max
    assert record.grad_norm != record.grad_norm
    assert snapshot.fisher is not None
    assert snapshot.fisher.status == "incomplete"
    assert snapshot["a"].incomplete is snapshot["c"].incomplete is None


def test_a_use_that_was_not_seen_counts_without_a_gradient_too() -> None:
    # The rectifier is dead, so the gradient of the weight says nothing of these rows.
    record = analysed(Net(lambda b, h: b(h) + torch.relu(h @ b.weight.T - 1e3)))["b"]
    assert record.incomplete is not None
    assert "used otherwise than by linear or conv2d" in record.incomplete
    assert record.input is not None
    assert record.input.status == "incomplete"


def test_a_weight_without_a_use_that_was_seen_is_listed() -> None:
    class Hidden(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x)) @ self.b.weight.T
            out: Tensor = self.c(torch.tanh(h))
            return out

    snapshot = analysed(Hidden(lambda b, h: h))
    assert snapshot.layers == ("a", "c")
    reasons = {entry.name: entry.reason for entry in snapshot.not_analysed}
    assert "used otherwise than by linear or conv2d" in reasons["b"]
    assert snapshot.coverage.parameters == pytest.approx((30 + 18) / (36 + 42 + 21))
    assert 0 < snapshot.coverage.gradient < 1


def test_hooks_and_forwards_that_change_the_output_are_seen() -> None:
    """One backward pass a sample: the block of W.grad."""

    def hooked() -> nn.Module:
        net = Net(lambda b, h: b(h))
        net.a.register_forward_hook(lambda module, given, out: 2 * out)
        return net

    def patched() -> nn.Module:
        net = Net(lambda b, h: b(h))
        plain = net.a.forward
        net.a.forward = lambda input: 3 * plain(input)  # type: ignore[method-assign]  # noqa: A006
        return net

    inputs, targets = cases.normal(12, 5), cases.labels(12, 3)
    for net in (hooked(), patched()):
        weight = net.get_parameter("a.weight")
        rows = torch.stack([
            torch.autograd.grad(CROSS_ENTROPY(net(x[None]), y[None]), weight)[0].flatten()
            for x, y in zip(inputs, targets, strict=True)
        ])
        snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ("fisher",))
        oracles.close(snapshot["a"].fisher, torch.linalg.svdvals(rows).square() / 12)


class Causal(nn.Conv2d):
    """Pads on two sides only."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (2, 0, 2, 0)), weight, bias)


class Standardised(nn.Conv2d):
    """Convolves with another kernel than its weight."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = super()._conv_forward(x, weight - weight.mean(), bias)
        return out


def test_convolutions_are_measured_as_they_are_called() -> None:
    inputs, targets = cases.normal(6, 2, 5, 5), cases.labels(6, 3)

    def net(kind: type[nn.Conv2d]) -> nn.Module:
        torch.manual_seed(0)
        conv = kind(2, 3, 3, padding=1)
        return nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(75, 3)).double()

    causal = net(Causal)
    rows = torch.stack([
        torch.autograd.grad(
            CROSS_ENTROPY(causal(x[None]), y[None]), causal.get_parameter("0.weight")
        )[0].flatten()
        for x, y in zip(inputs, targets, strict=True)
    ])
    snapshot = condexp.analyze(causal, CROSS_ENTROPY, inputs, targets, ("fisher",))
    oracles.close(snapshot["0"].fisher, torch.linalg.svdvals(rows).square() / 6)
    standardised = condexp.analyze(net(Standardised), CROSS_ENTROPY, inputs, targets, ("fisher",))
    assert standardised.layers == ("3",)


def test_nothing_is_replaced_afterwards_and_watches_nest() -> None:
    linear, conv2d, of_torch = F.linear, F.conv2d, torch.conv2d
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    seen: list[str] = []

    def note(name: str, use: object, source: Tensor) -> None:
        seen.append(name)

    with watched({"first": layer_of(first)}, note):
        with watched({"second": layer_of(second), "again": layer_of(first)}, note):
            second(first(torch.ones(1, 2)))
        second(first(torch.ones(1, 2)))
    assert seen == ["first", "again", "second", "first"]
    assert (F.linear, F.conv2d, torch.conv2d) == (linear, conv2d, of_torch)


# Samples.


def test_concatenated_views_are_two_rows_of_each_sample() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            one, other = torch.tanh(self.a(torch.cat([x, x.flip(1)]))).chunk(2)
            out: Tensor = self.c(one + other)
            return out

    net, inputs, targets = Views(), cases.normal(9, 5), cases.labels(9, 3)
    snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ("fisher",))
    rows = torch.stack([
        torch.autograd.grad(CROSS_ENTROPY(net(x[None]), y[None]), net.a.weight)[0].flatten()
        for x, y in zip(inputs, targets, strict=True)
    ])
    oracles.close(snapshot["a"].fisher, torch.linalg.svdvals(rows).square() / 9)


class Experts(nn.Module):
    """Each row goes to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.head = nn.Linear(4, 2), nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        p, out = self.gate(x).softmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            chosen = (p.argmax(-1) == i).nonzero()[:, 0]
            out = out.index_put((chosen,), expert(x[chosen]) * p[chosen][:, i : i + 1])
        found: Tensor = self.head(torch.tanh(out))
        return found


def test_experts_have_factors_but_no_fisher() -> None:
    net, inputs, targets = Experts(), cases.normal(17, 4), cases.labels(17, 3)
    snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ALL)
    rows = inputs[net.gate(inputs).argmax(-1) == 0]
    assert 0 < len(rows) < 17
    record = snapshot["experts.0"]
    oracles.close(record.input, oracles.united((rows.T @ rows / len(rows))[None]))
    assert record.fisher is not None
    assert record.fisher.status == "incomplete"
    assert record.incomplete is not None
    assert "do not belong to samples" in record.incomplete
    assert snapshot["head"].fisher is not None
    assert snapshot["head"].fisher.status == "ok"


class OwnNorm(nn.Module):
    """A batch normalisation that is not torch's class."""

    def forward(self, h: Tensor) -> Tensor:
        return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()


class FunctionalNorm(nn.Module):
    """One by torch's function."""

    def forward(self, h: Tensor) -> Tensor:
        return F.batch_norm(h, None, None, training=True)


@pytest.mark.parametrize("norm", [OwnNorm, FunctionalNorm])
def test_samples_that_mix_are_found_whatever_mixes_them(norm: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(4, 6), norm(), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = cases.normal(10, 4), cases.labels(10, 3)
    with pytest.raises(InputError, match="a sample's output depends on other samples' rows"):
        condexp.analyze(net, CROSS_ENTROPY, inputs, targets, fisher_type="exact")
    snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ("fisher",))
    assert snapshot["0"].fisher is not None
    assert snapshot["0"].fisher.status == "incomplete"
    assert snapshot["3"].fisher is not None
    assert snapshot["3"].fisher.status == "ok"


# Losses and counts.

SPELLINGS: dict[str, Callable[..., Callable[[Tensor, Tensor], Tensor]]] = {
    "partial": lambda **kw: functools.partial(F.cross_entropy, **kw),
    "lambda": lambda **kw: lambda f, y: F.cross_entropy(f, y, **kw),
    "flattened": lambda **kw: lambda f, y: F.cross_entropy(f.flatten(0, 0), y.flatten(), **kw),
}


class Holding(nn.Module):
    """A module that holds the loss."""

    def __init__(self, **kw: Any) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(**kw)

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.loss(f, y)
        return out


@pytest.mark.parametrize(
    "kw",
    [{}, {"weight": torch.tensor([1.0, 2.0, 5.0]).double()}, {"reduction": "sum"}],
    ids=["ignored targets", "weights", "sum"],
)
@pytest.mark.parametrize("spelling", [*SPELLINGS, "module"])
def test_the_spelling_of_a_loss_does_not_matter(spelling: str, kw: dict[str, Any]) -> None:
    net, inputs, targets = cases.mlp(), cases.normal(12, 4), cases.labels(12, 3)
    targets[:4] = -100
    expected = condexp.analyze(net, nn.CrossEntropyLoss(**kw), inputs, targets)
    loss_fn = Holding(**kw) if spelling == "module" else SPELLINGS[spelling](**kw)
    given = condexp.analyze(net, loss_fn, inputs, targets)
    for name in expected.layers:
        oracles.same(given[name].grad_output, expected[name].grad_output)


def test_ignored_targets_alone_are_an_error() -> None:
    targets = torch.full((6,), -100)
    with pytest.raises(InputError, match="every target of a batch is ignored"):
        condexp.analyze(cases.mlp(), CROSS_ENTROPY, cases.normal(6, 4), targets)


def test_a_loss_that_looks_like_a_sum_is_warned_about() -> None:
    def squares(f: Tensor, y: Tensor) -> Tensor:
        return (f - y).square().sum()

    targets = cases.normal(6, 3, seed=4)
    with pytest.warns(UserWarning, match="D = N = 6 is taken"):
        condexp.analyze(cases.mlp(), squares, cases.normal(6, 4), targets)
    condexp.analyze(cases.mlp(), squares, cases.normal(6, 4), targets, denominator=1.0)


def test_a_first_tensor_that_is_no_batch() -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(3, 3)

        def forward(self, t: Tensor | float, y: Tensor) -> Tensor:
            return torch.tanh(self.fc(y)) * t

    net, y = Field(), torch.randn(8, 3)
    found = []
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        with Recorder(net) as recorder:
            net(t, y).square().sum(1).mean().backward()
        snapshot = recorder.snapshot()
        assert snapshot.num_samples == 8
        found.append(snapshot["fc"].grad_output)
    for spectrum in found[1:]:
        oracles.same(spectrum, found[0])
    with (
        Recorder(net),
        pytest.raises(InputError, match=r"shapes \[8, 3\], \[2, 3\], which differ .*num_samples"),
    ):
        net(y, torch.ones(2, 3))
    with Recorder(net, num_samples=8) as recorder:
        net(torch.ones(1, 3), y).square().sum(1).mean().backward()
    assert recorder.snapshot().num_samples == 8


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 2.0**12])
def test_the_denominator_of_a_cross_entropy_is_read_off_its_gradient(scale: float) -> None:
    net, inputs, targets = cases.mlp(), cases.normal(12, 4), cases.labels(12, 3)
    targets[:2] = -100
    expected = condexp.analyze(net, CROSS_ENTROPY, inputs, targets)
    with Recorder(net) as recorder:
        (scale * CROSS_ENTROPY(net(inputs), targets)).backward()
    for name in expected.layers:
        oracles.same(recorder.snapshot()[name].grad_output, expected[name].grad_output)


def test_a_layer_called_like_an_alias_is_that_layer() -> None:
    net = nn.Sequential()
    net.add_module("zeroth", nn.Linear(4, 4))
    net.add_module("first", nn.Linear(4, 3))
    inputs, targets = cases.normal(5, 4).float(), cases.labels(5, 3)
    assert condexp.analyze(net, CROSS_ENTROPY, inputs, targets, layers="first").layers == ("first",)


# Compiled parts.


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "part"])
def test_compiled_parts_are_run_as_they_were(whole: bool) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    net = nn.Sequential(body, nn.Linear(8, 3)).double()
    inputs, targets = cases.normal(16, 6), cases.labels(16, 3)
    expected = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, FACTORS)
    compiled: Any = torch.compile(net if whole else body, backend="eager")
    if not whole:
        compiled = nn.Sequential(compiled, net[1])
    CROSS_ENTROPY(compiled(inputs), targets).backward()  # compiled before anyone looks
    given = condexp.analyze(compiled, CROSS_ENTROPY, inputs, targets, FACTORS)
    for one, other in zip(given.records, expected.records, strict=True):
        oracles.same(one.input, other.input)
        oracles.same(one.grad_output, other.grad_output)
    with pytest.raises(InputError, match=r"compiled by torch\.compile"), Recorder(compiled):
        pass
