"""Embeddings: linear maps of unit vectors, which are written out here; alone, and tied."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.linalg.counts import spectrum_of_counts
from condexp.analysis.options import AnalysisOptions
from condexp.errors import InputError
from tests import cases, reference
from tests.analysis import oracles

ALL = ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad")
CROSS_ENTROPY = nn.CrossEntropyLoss()
V, D = 7, 4


class Net(nn.Module):
    """A table that is looked up twice, and a linear map of what is found."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.fc = nn.Embedding(V, D, **options), nn.Linear(D, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found = self.table(x)
        found = found if found.ndim == 3 else found[:, None]
        out: Tensor = self.fc(torch.tanh(found + self.table((x + 1) % V).view_as(found)).mean(1))
        return out


def truth(net: Net, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows a and g, ``[N, T, ·]`` of both uses, and the samples' gradients, ``[N, V·D]``."""
    units = torch.eye(V, dtype=torch.float64)
    if net.table.padding_idx is not None:
        units[net.table.padding_idx] = 0  # it is not trained
    both = [tokens.view(len(tokens), -1), (tokens.view(len(tokens), -1) + 1) % V]
    zeros = [torch.zeros(*ids.shape, D, dtype=torch.float64, requires_grad=True) for ids in both]
    with torch.no_grad():
        values = [net.table(ids) for ids in both]
    parts = [value + zero for value, zero in zip(values, zeros, strict=True)]
    loss = CROSS_ENTROPY(net.fc(torch.tanh(parts[0] + parts[1]).mean(1)), targets)
    grads = torch.autograd.grad(loss, zeros)
    rows, signals = torch.cat([units[ids] for ids in both], 1), len(tokens) * torch.cat(grads, 1)
    of_samples = []
    for x, y in zip(tokens, targets, strict=True):
        grad = torch.autograd.grad(CROSS_ENTROPY(net(x[None]), y[None]), net.table.weight)[0]
        of_samples.append((grad.to_dense() if grad.is_sparse else grad).flatten())
    return rows, signals, torch.stack(of_samples)


@settings(max_examples=40, deadline=None)
@given(
    padding=st.sampled_from([None, 2, -1]),
    max_norm=st.sampled_from([None, 0.7]),
    sparse=st.booleans(),
    center=st.booleans(),
    shape=st.sampled_from([(5,), (5, 3), (2, 9), (9, 1)]),
    seed=st.integers(0, 99),
)
def test_a_table_is_a_linear_map_of_unit_vectors(
    padding: int | None,
    max_norm: float | None,
    sparse: bool,
    center: bool,
    shape: tuple[int, ...],
    seed: int,
) -> None:
    net = Net(padding_idx=padding, max_norm=max_norm, sparse=sparse)
    tokens = torch.randint(V, shape, generator=cases.seeded(seed))
    targets = cases.labels(len(tokens), 3)
    before = net.table.weight.detach().clone()
    snapshot = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, ALL, center=center)
    assert torch.equal(before, net.table.weight)  # max_norm shortens in the forward pass
    record = snapshot["table"]
    rows, signals, of_samples = truth(net, tokens, targets)
    assert record.incomplete is None
    assert record.gradient_residual < 1e-12 or of_samples.abs().max() < 1e-12
    assert record.info.type == "Embedding"
    assert record.info.spectrum_length("input") == V  # type: ignore[arg-type]
    expected = reference.mean_second_moment(rows, center=center)
    assert record.input is not None
    assert record.kfac is not None
    oracles.close(record.input, torch.linalg.eigvalsh(expected).flip(0).clamp(min=0))
    of_grads = oracles.grad_output_matrices(signals[None], center=center)[0]
    oracles.close(record.grad_output, torch.linalg.eigvalsh(of_grads).flip(0))
    products = reference.kronecker_eigenvalues(expected, of_grads)
    assert record.kfac.lambda_max == pytest.approx(float(products.max()), rel=1e-10)
    gram = of_samples @ of_samples.mT / len(tokens)
    oracles.close(record.fisher, torch.linalg.eigvalsh(gram).flip(0)[: V * D])
    seen = rows.flatten(0, 1).sum(0) > 0
    assert record.dead_fraction == pytest.approx(1 - float(seen.double().mean()))
    mean = rows.flatten(0, 1).mean(0)
    share = float(mean.square().sum() / rows.square().sum(2).mean())
    assert record.input_mean_fraction == pytest.approx(share, rel=1e-10, nan_ok=True)


def test_unseen_entries_are_exact_zeros() -> None:
    spectrum = spectrum_of_counts(torch.tensor([3, 0, 1, 0]), 4, center=False)
    assert spectrum.eigenvalues.tolist() == [0.75, 0.25, 0, 0]
    assert spectrum.kappa_interval(0.5) == pytest.approx((3.0, 3.0))
    assert spectrum.kappa(1.0) == math.inf
    centred = spectrum_of_counts(torch.tensor([2, 2, 2, 0]), 6, center=True)
    assert centred.eigenvalues.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0])
    assert centred.kappa(0.75) == math.inf  # three frequencies add up to 1


def test_batches_are_united() -> None:
    net, tokens, targets = Net(), torch.arange(12).view(6, 2) % V, cases.labels(6, 3)
    chosen = AnalysisOptions(matrices=ALL)  # type: ignore[arg-type]
    parts = [(tokens[:4], targets[:4]), (tokens[4:], targets[4:])]
    found = analyze_batches(net, CROSS_ENTROPY, parts, chosen)["table"]
    whole = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, chosen)["table"]
    for matrix in ("input", "grad_output", "fisher"):
        oracles.same(getattr(found, matrix), getattr(whole, matrix))


class Positions(nn.Module):
    """Tokens, positions, kinds, and a table whose product is no summand of a sample's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.position = nn.Embedding(V, D), nn.Embedding(5, D)
        self.kind, self.factor = nn.Embedding(2, D), nn.Embedding(5, D)
        self.fc = nn.Linear(D, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        kinds = torch.zeros_like(x)  # not the batch's, and of samples all the same
        found = self.table(x) + self.position(places) + self.kind(kinds)
        out: Tensor = self.fc(torch.tanh(found * self.factor(places)).mean(1))
        return out


@pytest.mark.parametrize("num_samples", [4, 5])  # as many as there are positions, and others
@pytest.mark.parametrize("matrices", [("input", "grad_output", "kfac"), ("fisher",)])
def test_positions_that_are_added_are_each_samples(
    num_samples: int, matrices: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    net, tokens = Positions(), torch.arange(num_samples * 5).view(num_samples, 5) % V
    targets = cases.labels(num_samples, 3)
    snapshot = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, matrices)
    assert snapshot.layers == ("table", "position", "kind", "fc")
    listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
    assert "whose rows do not belong to samples" in listed["factor"]
    options = AnalysisOptions(matrices=matrices)  # type: ignore[arg-type]
    traced = trace_layers(net, tokens[:2], options)
    assert [layer.name for layer in traced.layers] == ["table", "position", "kind", "fc"]
    assert [layer.positions for layer in traced.layers] == [5, 5, 5, 1]
    record, weight = snapshot["position"], net.position.weight
    assert record.gradient_residual < 1e-12
    with torch.no_grad():
        parts = [net.table(tokens), net.position(torch.arange(5)), net.kind(tokens * 0)]
    summand = parts[1].expand(num_samples, 5, D).clone().requires_grad_()
    factor = net.factor(torch.arange(5))
    found = torch.tanh((parts[0] + summand + parts[2]) * factor).mean(1)
    grads = torch.autograd.grad(CROSS_ENTROPY(net.fc(found), targets), summand)[0] * num_samples
    if matrices == ("fisher",):
        rows = []
        for x, y in zip(tokens, targets, strict=True):
            rows.append(torch.autograd.grad(CROSS_ENTROPY(net(x[None]), y[None]), weight)[0])
        gram = torch.stack(rows).flatten(1)
        oracles.close(record.fisher, torch.linalg.svdvals(gram)[:20] ** 2 / num_samples)
        return
    assert record.input is not None
    assert record.input.eigenvalues.tolist() == pytest.approx([0.2] * 5)
    flat = grads.flatten(0, 1)
    oracles.close(record.grad_output, torch.linalg.eigvalsh(flat.mT @ flat / num_samples).flip(0))
    one = condexp.analyze(net, CROSS_ENTROPY, tokens[:1], targets[:1], matrices)
    assert "factor" in one.layers  # of the one sample there is


def test_positions_under_all_labels_and_in_batches() -> None:
    torch.manual_seed(0)
    net, tokens, targets = Positions(), torch.arange(20).view(4, 5) % V, cases.labels(4, 3)
    options = AnalysisOptions(("fisher", "grad_output"), fisher_type="exact")  # type: ignore[arg-type]
    record = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, options)["position"]
    rows = []
    for x in tokens:
        output = net(x[None])[0]
        p = output.detach().softmax(0)
        values, vectors = torch.linalg.eigh(p.diag() - torch.outer(p, p))
        roots = (vectors * values.clamp(min=0).sqrt()).T
        rows += [
            torch.autograd.grad(output, net.position.weight, r, retain_graph=True)[0] for r in roots
        ]
    assert record.fisher is not None
    expected = torch.linalg.svdvals(torch.stack(rows).flatten(1)) ** 2 / 4
    oracles.close(record.fisher, expected[: len(record.fisher)])
    parts = [(tokens[:2], targets[:2]), (tokens[2:], targets[2:])]
    united = analyze_batches(net, CROSS_ENTROPY, parts, options)["position"]
    oracles.same(united.fisher, record.fisher)
    oracles.same(united.grad_output, record.grad_output)


def test_a_gradient_that_is_divided_by_counts_is_refused() -> None:
    net, tokens = Net(scale_grad_by_freq=True), torch.arange(8).view(4, 2) % V
    snapshot = condexp.analyze(net, CROSS_ENTROPY, tokens, cases.labels(4, 3))
    listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
    assert "scale_grad_by_freq" in listed["table"]


class Tied(nn.Module):
    """A table that is the last layer too, and an autoencoder with one kernel."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first: nn.Module
        self.last: nn.Module
        if kind == "table":
            self.first, self.last = nn.Embedding(V, D), nn.Linear(D, V)
        else:
            self.first = nn.Conv2d(2, 4, 3, groups=2)
            self.last = nn.ConvTranspose2d(4, 2, 3, groups=2, bias=False)
        self.last.weight = self.first.weight
        self.mid = nn.Linear(D, D) if kind == "table" else nn.Conv2d(4, 4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(torch.tanh(self.mid(self.first(x))))
        out: Tensor = found.mean(1) if found.ndim == 3 else found.flatten(1)
        return out


TIED: Mapping[str, Tensor] = {
    "table": torch.arange(12).view(4, 3) % V,
    "kernel": cases.normal(4, 2, 4, 4),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", TIED)
def test_uses_of_several_kinds_make_one_fisher_block(kind: str, bias: bool) -> None:
    net, inputs, targets = Tied(kind), TIED[kind], cases.labels(4, V)
    snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ALL, bias=bias)
    record = snapshot["last"]
    assert record is snapshot["first"]
    absent = (record.input, record.grad_output, record.kfac, record.incomplete)
    assert absent == (None, None, None, None)
    assert record.gradient_residual < 1e-12
    weight = net.first.weight
    assert isinstance(weight, Tensor)
    of_samples = []
    for x, y in zip(inputs, targets, strict=True):
        of_samples.append(torch.autograd.grad(CROSS_ENTROPY(net(x[None]), y[None]), weight)[0])
    rows = torch.stack(of_samples).flatten(1)
    oracles.close(record.fisher, torch.linalg.eigvalsh(rows @ rows.mT / 4).flip(0))
    listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
    assert "whose sum is no Kronecker product" in listed["first"]
    assert listed["last"] == "shares the weight of 'first', measured there"
    assert listed["first.bias" if kind == "kernel" else "last.bias"].startswith("a bias beside")
    factors = condexp.analyze(net, CROSS_ENTROPY, inputs, targets)
    assert factors.layers == ("mid",)
    with pytest.raises(InputError, match="'first', 'last': used in several ways"):
        condexp.analyze(net, CROSS_ENTROPY, inputs, targets, exclude=("mid",))


def test_the_exact_block_of_a_tied_weight() -> None:
    net, tokens, targets = Tied("table"), TIED["table"], cases.labels(4, V)
    found = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, ALL, fisher_type="exact")
    weight, rows = net.first.weight, []
    assert isinstance(weight, Tensor)
    for x in tokens:
        output = net(x[None])[0]
        p = output.detach().softmax(0)
        values, vectors = torch.linalg.eigh(p.diag() - torch.outer(p, p))
        roots = (vectors * values.clamp(min=0).sqrt()).T
        rows += [torch.autograd.grad(output, weight, r, retain_graph=True)[0] for r in roots]
    expected = torch.linalg.svdvals(torch.stack(rows).flatten(1)) ** 2 / 4
    fisher = found["first"].fisher
    assert fisher is not None
    oracles.close(fisher, expected[: len(fisher)])
