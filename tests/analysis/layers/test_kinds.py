"""Every kind of layer against its Jacobian, whose rows are those of its weight."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import condexp
from condexp.analysis.layers.select import select_layers
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import LayerSnapshot
from condexp.errors import InputError
from tests import cases, reference
from tests.analysis import oracles

ALL = ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad")
CROSS_ENTROPY = nn.CrossEntropyLoss()
OPTIONS = AnalysisOptions()
N = 4
MODULES: dict[str, Any] = {
    f"{kind}{dims}d": getattr(nn, f"{kind}{dims}d")
    for kind in ("Conv", "ConvTranspose")
    for dims in (1, 2, 3)
}


class Net(nn.Module):
    """A layer, whatever is in it, and a linear one on what it returns."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            size = layer(torch.zeros(1, *shape)).numel()
        self.fc = nn.Linear(size, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.tanh(self.layer(x)).flatten(1))
        return out


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution with options of any kind, and an input shape that it takes."""
    kind = draw(st.sampled_from(sorted(MODULES)))
    dims, transposed = int(kind[-2]), "Transpose" in kind
    groups = draw(st.sampled_from([1, 2]))

    def numbers(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = numbers(1, 3), numbers(1, 2), numbers(1, 2)
    options: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans()), "stride": stride}
    options |= {"dilation": dilation, "padding": numbers(0, 2)}
    if transposed:
        limits = (max(s, d) for s, d in zip(stride, dilation, strict=True))
        options["output_padding"] = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
    else:
        modes = ["zeros", "circular", "replicate"]
        options["padding_mode"] = draw(st.sampled_from(modes))
        if draw(st.booleans()) and set(stride) == {1}:
            options["padding"] = "same"
    sides = tuple(draw(st.integers(5 if dims == 1 else 3, 6 if dims < 3 else 4)) for _ in kernel)
    torch.manual_seed(draw(st.integers(0, 99)))
    module = MODULES[kind](2 * groups, 2 * groups, kernel, **options)
    return module, (2 * groups, *sides)


def jacobian_rows(layer: nn.Module, groups: int, inputs: Tensor) -> Tensor:
    """Rows a of each group, ``[groups, N·T, d_in]``: ∂h/∂w of one of the group's outputs."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    outputs = layer(inputs).flatten(2)  # [N, C_out, T]
    rows = []
    for group in range(groups):
        output = outputs[:, group * (outputs.shape[1] // groups)].flatten()
        found = [torch.autograd.grad(h, weight, retain_graph=True)[0] for h in output]
        rows.append(torch.stack(found).flatten(1))
    every = torch.stack(rows)
    # Of a weight an output is multiplied with d_in numbers; all others have no gradient at all.
    kept = [block[:, (block != 0).any(0)] for block in every]
    d_in = outputs.shape[1] and weight.numel() // outputs.shape[1]
    return torch.stack([F.pad(block, (0, d_in - block.shape[1])) for block in kept])


def sample_gradients(net: nn.Module, weight: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    losses = (CROSS_ENTROPY(net(x[None]), y[None]) for x, y in zip(inputs, targets, strict=True))
    return torch.stack([torch.autograd.grad(loss, weight)[0].flatten() for loss in losses])


def check(record: LayerSnapshot, rows: Tensor, grads: Tensor, of_samples: Tensor) -> None:
    """Compare a record with rows a ``[groups, R, d_in]`` and g ``[groups, R, d]`` of each group."""
    inputs, outputs = rows.mT @ rows / rows.shape[1], grads.mT @ grads / N
    assert record.incomplete is None
    assert record.gradient_residual < 1e-12
    assert record.input is not None
    assert record.grad_output is not None
    assert record.kfac is not None
    assert record.fisher is not None
    pairs = zip(inputs, outputs, strict=True)
    products = torch.cat([reference.kronecker_eigenvalues(a, b) for a, b in pairs])
    for spectrum, matrices in ((record.input, inputs), (record.grad_output, outputs)):
        values = torch.cat([torch.linalg.eigvalsh(matrix) for matrix in matrices])
        oracles.close(spectrum, values.sort(descending=True).values)
    expected = products.sort(descending=True).values.clamp(min=0)
    assert record.kfac.lambda_max == pytest.approx(float(expected[0]), rel=1e-10)
    assert record.kfac.trace == pytest.approx(float(expected.sum()), rel=1e-10)
    for p in (0.25, 0.5):
        low, high = record.kfac.kappa_interval(p)
        value = float(expected[0] / expected[math.ceil(p * len(expected)) - 1])
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9) or value > 1e14
    oracles.close(record.fisher, torch.linalg.eigvalsh(of_samples @ of_samples.mT / N).flip(0))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(convolutions())
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_of_every_kind(drawn: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, shape = drawn
    try:
        net = Net(layer, shape)
    except RuntimeError:  # the kernel is larger than the image
        return
    inputs, targets = cases.normal(N, *shape), cases.labels(N, 3)
    record = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ALL)["layer"]
    groups = record.info.groups
    assert record.info.type == type(layer).__name__
    kept = net.layer(inputs)
    grad = torch.autograd.grad(CROSS_ENTROPY(net.fc(torch.tanh(kept).flatten(1)), targets), kept)[0]
    blocks = grad.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2) * N
    weight = layer.weight
    assert isinstance(weight, Tensor)
    of_samples = sample_gradients(net, weight, inputs, targets)
    check(record, jacobian_rows(layer, groups, inputs), blocks, of_samples)


class Conv1D(nn.Module):
    """The linear map of GPT-2, as transformers has it: a weight [d_in, d_out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return out.view((*x.size()[:-1], self.nf))


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_map_of_a_transposed_weight(bias: bool) -> None:
    torch.manual_seed(0)
    layer, linear = Conv1D(5, 4), nn.Linear(4, 5)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.T)
        linear.bias.copy_(layer.bias)
    given, expected = Net(layer, (3, 4)), Net(linear, (3, 4))
    expected.fc.load_state_dict(given.fc.state_dict())
    inputs, targets = cases.normal(N, 3, 4), cases.labels(N, 3)
    found, right = (
        condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ALL, bias=bias)["layer"]
        for net in (given, expected)
    )
    assert (found.info.type, found.info.d_in, found.info.d_out) == ("Conv1D", 4 + bias, 5)
    same(found, right)
    assert found.effective_lr == pytest.approx(right.effective_lr, rel=1e-12, nan_ok=True)


def same(one: LayerSnapshot, other: LayerSnapshot) -> None:
    for matrix in ("input", "grad_output", "fisher", "weight", "weight_grad"):
        oracles.same(getattr(one, matrix), getattr(other, matrix))
    assert one.incomplete is other.incomplete is None


class Attention(nn.Module):
    """Self-attention of nn.MultiheadAttention, or written out with one packed linear layer."""

    def __init__(self, *, packed: bool, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.fc = nn.Linear(6, 3)
        self.double()
        self.packed, self.batch_first = packed, batch_first
        if not packed:
            self.qkv, self.out = nn.Linear(6, 18).double(), self.attention.out_proj
            with torch.no_grad():
                self.qkv.weight.copy_(self.attention.in_proj_weight)
                self.qkv.bias.copy_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            x = x if self.batch_first else x.transpose(0, 1)
            found = self.attention(x, x, x, need_weights=False)[0]
            out: Tensor = self.fc(found.mean(1 if self.batch_first else 0))
            return out
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v)
        return self.fc(self.out(found.transpose(1, 2).flatten(2)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_packed_projection_of_self_attention(batch_first: bool) -> None:
    inputs, targets = cases.normal(N, 5, 6), cases.labels(N, 3)
    given, expected = (
        condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ALL)
        for net in (Attention(packed=True, batch_first=batch_first), Attention(packed=False))
    )
    assert given.layers == ("attention.in_proj", "attention.out_proj", "fc")
    same(given["attention.in_proj"], expected["qkv"])
    same(given["attention.out_proj"], expected["attention.out_proj"])
    assert given["attention.in_proj"].info.uses == 1


class Cross(nn.Module):
    """Attention of some queries to keys and values of their own widths."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.fc = nn.Linear(6, 3)
        self.double()

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = x[..., : self.attention.kdim].sin()
        value = x[..., : self.attention.vdim].cos()
        return x[:, :2], key, value

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.attention(*self.parts(x))[0].mean(1))
        return out


CROSSES: dict[str, dict[str, Any]] = {
    "packed": {},
    "no bias": {"bias": False},
    "keys of their own": {"add_bias_kv": True},
    "other widths": {"kdim": 4, "vdim": 3},
}


@pytest.mark.parametrize("options", CROSSES.values(), ids=CROSSES)
def test_cross_attention_uses_parts_of_one_weight(options: dict[str, Any]) -> None:
    net, inputs, targets = Cross(**options), cases.normal(N, 5, 6), cases.labels(N, 3)
    snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ALL)
    names = [name for name in snapshot.layers if name.endswith("_proj")]
    weights = dict(net.attention.named_parameters())
    expected = ["q_proj", "k_proj", "v_proj"] if "kdim" in options else ["in_proj"]
    assert names == [f"attention.{part}" for part in [*expected, "out_proj"]]
    rows = [part.flatten(0, 1) for part in net.parts(inputs)]
    if "kdim" not in options:
        rows = [torch.cat(rows)]
        assert snapshot["attention.in_proj"].info.uses == 3
    for part, of_part in zip(expected, rows, strict=True):
        record = snapshot[f"attention.{part}"]
        assert record.incomplete is None
        assert record.gradient_residual < 1e-12
        values = torch.linalg.eigvalsh(of_part.mT @ of_part / len(of_part)).flip(0)
        assert record.input is not None
        assert record.fisher is not None
        oracles.close(record.input, values)
        of_samples = sample_gradients(net, weights[f"{part}_weight"], inputs, targets)
        oracles.close(record.fisher, torch.linalg.eigvalsh(of_samples @ of_samples.mT / N).flip(0))
    listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
    assert ("attention" in listed) is ("add_bias_kv" in options)


def test_rows_of_a_matrix_may_be_used_by_themselves() -> None:
    class Halves(nn.Module):
        def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.fc, self.cut = nn.Linear(4, 6, bias=False), nn.Linear(3, 3), cut
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(torch.tanh(F.linear(x, self.cut(self.a.weight))))
            return out

    inputs, targets = cases.normal(N, 4), cases.labels(N, 3)
    rows = condexp.analyze(Halves(lambda w: w[2:5]), CROSS_ENTROPY, inputs, targets, ALL)["a"]
    assert rows.incomplete is None
    assert rows.grad_output is not None
    assert len(rows.grad_output) == 6
    assert rows.grad_output.rank <= 3
    for cut in (lambda w: w[::2], lambda w: w[1:4].clone()):
        snapshot = condexp.analyze(Halves(cut), CROSS_ENTROPY, inputs, targets, ALL)
        listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
        assert "otherwise" in listed["a"]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_without_a_batch_there_are_no_samples(dims: int) -> None:
    layer = MODULES[f"Conv{dims}d"](2, 2, 2)
    with (
        pytest.raises(InputError, match=r"needs a batch, \[N, C, \.\.\.\]"),
        condexp.Recorder(layer, ("input",)),
    ):
        layer(torch.zeros(2, *[4] * dims))


def test_what_stays_out_is_listed_with_its_reason() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.lstm = nn.Embedding(5, 4), nn.LSTM(4, 4, batch_first=True)
            self.bilinear, self.fc = nn.Bilinear(4, 4, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            hidden = self.lstm(self.table(tokens))[0].mean(1)
            out: Tensor = self.fc(self.bilinear(hidden, hidden))
            return out

    tokens, targets = torch.arange(8).view(4, 2) % 5, cases.labels(N, 3)
    snapshot = condexp.analyze(Others(), CROSS_ENTROPY, tokens, targets)
    listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
    assert snapshot.layers == ("table", "fc")
    assert "inside a fused kernel" in listed["lstm"]
    assert listed["bilinear"].startswith("Bilinear: not a linear map")


@pytest.mark.filterwarnings("ignore")
def test_quantised_modules_are_listed() -> None:
    parts = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    quantise: Any = torch.ao.quantization.quantize_dynamic
    model = nn.Sequential(quantise(parts, {nn.Linear, nn.LSTM}), nn.Linear(4, 3))
    model.append(nn.Linear(3, 3))
    packed = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    model[2].weight = packed
    listed = {entry.name: entry.reason for entry in select_layers(model, OPTIONS).not_analysed}
    assert listed == {
        "0.0": "Linear: quantised, so its weight has no gradient",
        "0.1": "LSTM: quantised, so its weight has no gradient",
        "2": "Linear: quantised, so its weight has no gradient",
    }
