"""Scales of normalisations: their Fisher blocks against one backward pass a sample."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.options import AnalysisOptions
from condexp.errors import InputError
from tests import cases
from tests.analysis import oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
N = 5
Make = Callable[[], nn.Module]
IMAGES: dict[str, Make] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "running instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "layer": lambda: nn.LayerNorm([4, 6, 6]),
    "last": lambda: nn.LayerNorm(6, bias=False),
    "rms": lambda: nn.RMSNorm(6),
}


def net_of(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), norm, nn.Tanh(), nn.Flatten())
    net.append(nn.Linear(144, 3))
    net.double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
        net(cases.normal(8, 2, 8, 8, seed=3))  # running statistics
    return net.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_the_block_of_a_scale_is_that_of_its_samples(make: Make, bias: bool) -> None:
    net, inputs, targets = net_of(make()), cases.normal(N, 2, 8, 8), cases.labels(N, 3)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    options = AnalysisOptions(("fisher", "kfac"), layers=("all", "norms"), bias=bias)  # type: ignore[arg-type]
    snapshot = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, options)
    assert snapshot.layers == ("0", "2", "5")
    record, norm = snapshot["2"], net.get_submodule("2")
    parameters = [p for name, p in norm.named_parameters() if bias or name == "weight"]
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        grads = torch.autograd.grad(CROSS_ENTROPY(net(x[None]), y[None]), parameters)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    gradients = torch.stack(rows)
    expected = torch.linalg.svdvals(gradients) ** 2 / N
    assert record.incomplete is None
    assert record.gradient_residual < 1e-12
    assert (record.input, record.kfac) == (None, None)
    assert record.fisher is not None
    assert len(record.fisher) == min(N, gradients.shape[1])
    oracles.close(record.fisher, expected)
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    if bias:
        assert snapshot.coverage.parameters == 1
    parts = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    oracles.same(analyze_batches(net, CROSS_ENTROPY, parts, options)["2"].fisher, record.fisher)
    traced = trace_layers(net, inputs[:2], options)
    assert [layer.name for layer in traced.layers] == ["0", "2", "5"]
    assert traced.layers[1].uses == 1


@pytest.mark.parametrize("fisher_type", ["exact", "mc"])
def test_other_labels(fisher_type: str) -> None:
    net, inputs, targets = net_of(nn.GroupNorm(2, 4)), cases.normal(N, 2, 8, 8), cases.labels(N, 3)
    options = AnalysisOptions(("fisher",), fisher_type, ("norms",), mc_samples=2)  # type: ignore[arg-type]
    record = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, options)["2"]
    if fisher_type == "mc":
        assert record.fisher is not None
        assert record.fisher.num_rows == 2 * N
        return
    weight, rows = net.get_parameter("2.weight"), []
    for x in inputs:
        output = net(x[None])[0]
        p = output.detach().softmax(0)
        values, vectors = torch.linalg.eigh(p.diag() - torch.outer(p, p))
        roots = (vectors * values.clamp(min=0).sqrt()).T
        rows += [torch.autograd.grad(output, weight, r, retain_graph=True)[0] for r in roots]
    oracles.close(record.fisher, torch.linalg.svdvals(torch.stack(rows)) ** 2 / N)


def test_in_training_mode_the_gradients_go_through_the_statistics() -> None:
    """Gradients of the sum of losses with respect to each sample's own copy of the scale."""
    net, inputs, targets = net_of(nn.BatchNorm2d(4)), cases.normal(N, 2, 8, 8), cases.labels(N, 3)
    net.train()
    record = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ("fisher",), layers=("2",))["2"]
    norm, image = net.get_submodule("2"), torch.tanh(net.get_submodule("0")(inputs)).detach()
    assert isinstance(norm, nn.BatchNorm2d)
    scales = norm.weight.detach().expand(N, 4).clone().requires_grad_()
    centred = image - image.mean((0, 2, 3), keepdim=True)
    normal = centred / (centred.square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt()
    found = normal * scales[:, :, None, None] + norm.bias.detach()[:, None, None]
    loss = CROSS_ENTROPY(net.get_submodule("5")(torch.tanh(found).flatten(1)), targets)
    rows = N * torch.autograd.grad(loss, scales)[0]
    oracles.close(record.fisher, torch.linalg.svdvals(rows) ** 2 / N)


def test_scales_are_measured_where_they_are_asked_for() -> None:
    net, inputs, targets = net_of(nn.BatchNorm2d(4)), cases.normal(N, 2, 8, 8), cases.labels(N, 3)
    plain = condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ("fisher",))
    assert plain.layers == ("0", "5")
    listed = {entry.name: entry.reason for entry in plain.not_analysed}
    assert listed["2"] == (
        "BatchNorm2d: a scale has a Fisher block alone: ask for 'fisher' and for layers 'norms'"
    )
    for pattern in ("2", "[2]", "norms"):
        assert condexp.analyze(
            net, CROSS_ENTROPY, inputs, targets, ("fisher",), layers=(pattern,)
        ).layers == ("2",)
    assert condexp.analyze(
        net, CROSS_ENTROPY, inputs, targets, ("fisher",), layers=("*",)
    ).layers == ("0", "5")
    with pytest.raises(InputError, match="'2': a scale has a Fisher block alone"):
        condexp.analyze(net, CROSS_ENTROPY, inputs, targets, ("kfac",), layers=("norms",))
    with pytest.raises(InputError, match="layers='norms' matches no layer"):
        condexp.analyze(cases.mlp(), CROSS_ENTROPY, inputs, targets, layers=("norms",))


def test_a_scale_that_is_used_elsewhere_too_is_incomplete() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.norm(x) * self.norm.weight)
            return out

    found = condexp.analyze(
        Twice(),
        CROSS_ENTROPY,
        cases.normal(N, 4),
        cases.labels(N, 3),
        ("fisher",),
        layers=("norm",),
    )
    assert found["norm"].incomplete is not None
