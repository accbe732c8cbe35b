"""KFAC-reduce against explicit sums over positions in float64; curvlinops: test_curvlinops.py."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.options import AnalysisOptions
from condexp.errors import InputError
from tests import cases
from tests.analysis import oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
FACTORS = ("input", "grad_output", "kfac")
N, T, V, D = 5, 4, 7, 6
# Sums over positions in another order, and a mean: rounding of some eps.
RELATIVE = 1e-10


class Net(nn.Module):
    """A table, attention, a reused and a sequence-first linear map, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, D, padding_idx=0)
        self.attention = nn.MultiheadAttention(D, 2)
        self.twice, self.turned = nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.conv = nn.Conv1d(D, 4, 2, stride=2, groups=2, padding=1)
        self.fc = nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        first = self.table(x).transpose(0, 1)  # [T, N, D]
        found = torch.tanh(first + self.attention(first, first, first)[0])
        found = torch.tanh(self.twice(found)) + self.twice(torch.sin(found))
        found = torch.tanh(self.turned(found)).permute(1, 2, 0)
        out: Tensor = self.fc(torch.tanh(self.conv(found)).mean(2))
        return out


class Recorded(Net):
    """The same net: rows a ``[groups, N, T, d]`` by hand, and zeros that are added to outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name in ("twice", "turned", "conv", "fc", "table"):
            self.get_submodule(name).register_forward_hook(self._keeps(name))

    def _keeps(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            zero, a = torch.zeros_like(output, requires_grad=True), args[0].detach()
            if name == "conv":
                padded = nn.functional.pad(a, (1, 1))
                windows = torch.stack([padded[:, :, 2 * t : 2 * t + 2] for t in range(3)], 1)
                rows = torch.stack(windows.tensor_split(2, 2)).flatten(3)
            elif name == "table":
                rows = (torch.eye(V, dtype=torch.float64)[a] * (a != 0)[..., None])[None]
            else:
                rows = a[None, :, None] if name == "fc" else a.transpose(0, 1)[None]
            self.rows.setdefault(name, []).append((rows, zero))
            return output + zero

        return hook


@settings(max_examples=15, deadline=None)
@given(bias=st.booleans(), center=st.booleans(), seed=st.integers(0, 99))
def test_the_positions_of_a_sample_make_one_row(bias: bool, center: bool, seed: int) -> None:
    tokens = torch.randint(V, (N, T), generator=cases.seeded(seed))
    targets = cases.labels(N, 3)
    choices: Any = {"weight_sharing": "reduce", "bias": bias, "center": center}
    snapshot = condexp.analyze(Net(), CROSS_ENTROPY, tokens, targets, FACTORS, **choices)
    by_hand = Recorded()
    loss = CROSS_ENTROPY(by_hand(tokens), targets)
    for name, uses in by_hand.rows.items():
        grads = torch.autograd.grad(loss, [g for _, g in uses], retain_graph=True)
        inputs = torch.cat([a for a, _ in uses], 2)
        if bias and getattr(by_hand.get_submodule(name), "bias", None) is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], 3)
        reduced = inputs.mean(2)
        summed = N * _summed(name, grads)
        if center:
            reduced = reduced - reduced.mean(1, keepdim=True)
            summed = summed - summed.mean(1, keepdim=True)
        record = snapshot[name]
        assert record.incomplete is None
        assert record.gradient_residual < 1e-12
        for spectrum, rows in ((record.input, reduced), (record.grad_output, summed)):
            values = torch.cat([torch.linalg.eigvalsh(b.mT @ b / N) for b in rows])
            oracles.close(spectrum, values.sort(descending=True).values.clamp(min=0), RELATIVE)
        if not center:
            mean, power = inputs.flatten(1, 2).mean(1), inputs.square().sum() / inputs.shape[2] / N
            if not bias:
                share = float(mean.square().sum() / power)
                assert record.input_mean_fraction == pytest.approx(share, rel=1e-9)


def _summed(name: str, grads: tuple[Tensor, ...]) -> Tensor:
    """Σ_t g over positions and uses, ``[groups, N, d]``."""
    grad = sum(grads)
    assert isinstance(grad, Tensor)
    if name == "conv":
        return torch.stack(grad.sum(2).tensor_split(2, 1))
    if name == "table":
        return grad.sum(1)[None]
    return grad[None] if name == "fc" else grad.sum(0)[None]


def test_without_positions_it_is_expand() -> None:
    net, inputs, targets = cases.mlp().double(), cases.normal(9, 4), cases.labels(9, 3)
    one, other = (
        condexp.analyze(net, CROSS_ENTROPY, inputs, targets, FACTORS, weight_sharing=sharing)
        for sharing in ("expand", "reduce")
    )
    for name in one.layers:
        oracles.same(one[name].input, other[name].input)
        oracles.same(one[name].grad_output, other[name].grad_output)
        assert one[name].info.rows_per_sample == other[name].info.rows_per_sample == 1


def test_batches_and_drawn_labels_are_united() -> None:
    net, tokens, targets = Net(), torch.arange(N * T).view(N, T) % V, cases.labels(N, 3)
    choices = AnalysisOptions(FACTORS, weight_sharing="reduce")  # type: ignore[arg-type]
    parts = [(tokens[:2], targets[:2]), (tokens[2:], targets[2:])]
    found = analyze_batches(net, CROSS_ENTROPY, parts, choices)
    whole = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, choices)
    for name in whole.layers:
        oracles.same(found[name].input, whole[name].input)
        oracles.same(found[name].grad_output, whole[name].grad_output)
    exact = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, choices, fisher_type="exact")
    # The last layer has one position: its factor is that of the expanded rows.
    expand = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, FACTORS, fisher_type="exact")
    oracles.same(exact["fc"].grad_output, expand["fc"].grad_output)


def test_inputs_alone_and_a_recorder_of_several_passes() -> None:
    net, tokens, targets = Net(), torch.arange(N * T).view(N, T) % V, cases.labels(N, 3)
    options = AnalysisOptions(FACTORS, weight_sharing="reduce")  # type: ignore[arg-type]
    whole = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, options)
    alone = condexp.analyze(net, CROSS_ENTROPY, tokens, targets, options, matrices=("input",))
    with condexp.Recorder(net, options) as recorder:
        for part in (slice(0, 2), slice(2, 5)):
            share = len(tokens[part]) / N
            (share * CROSS_ENTROPY(net(tokens[part]), targets[part])).backward()
    passes = recorder.snapshot()
    for name in whole.layers:
        oracles.same(alone[name].input, whole[name].input)
        oracles.same(passes[name].input, whole[name].input)
        oracles.same(passes[name].grad_output, whole[name].grad_output)
    with condexp.Recorder(net, options):
        net(tokens)
        with pytest.raises(InputError, match="called again before its gradients came"):
            net(tokens)


def test_rows_of_no_sample_cannot_be_reduced() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            found = torch.tanh(self.a(x))
            out: Tensor = self.fc(found + found.flip(0))
            return out

    inputs, targets = cases.normal(N, 4), cases.labels(N, 3)
    choices: Any = {"weight_sharing": "reduce"}
    record = condexp.analyze(Mixed(), CROSS_ENTROPY, inputs, targets, FACTORS, **choices)["a"]
    assert "as weight_sharing='reduce' needs" in str(record.incomplete)
    assert record.kfac is not None
    assert math.isnan(record.kfac.lambda_max)
    with pytest.raises(InputError, match="needs conv_input='patches'"):
        AnalysisOptions(weight_sharing="reduce", conv_input="channels")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Did you mean 'reduce'"):
        AnalysisOptions(weight_sharing="reduced")  # type: ignore[arg-type]
