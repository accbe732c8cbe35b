"""The factors of real architectures: brute force over samples, and another library's KFAC.

Own networks are thinned to a few channels, so that every layer is compared; of torchvision's, which
come in one width, the layers whose sides stay small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.options import AnalysisOptions
from condexp.models import resnet_imagenet, vgg
from tests import cases, from_conf
from tests.analysis import oracles
from tests.analysis.curvlinops_kfac import factors

NUM_CLASSES = 4
LOSS = nn.CrossEntropyLoss()
# Both sides are float64 sums of the same products in another order, relative to the largest
# eigenvalue; the deepest of these networks pass rounding through a hundred layers.
RELATIVE = 1e-8


@dataclass(frozen=True)
class Case:
    build: Callable[[tuple[int, ...]], nn.Module]
    shape: tuple[int, ...] = (3, 8, 8)
    layers: Sequence[str] = ("all",)


def own(name: str, **options: Any) -> Case:
    return Case(lambda shape: from_conf.build(name, shape, NUM_CLASSES, **options))


def torchvisions(arch: str, *layers: str) -> Case:
    return Case(
        lambda shape: from_conf.build("torchvision", shape, NUM_CLASSES, arch=arch),
        (3, 32, 32),
        layers,
    )


CASES = {
    "vgg11-bn": own("vgg", depth=11, norm="batch"),
    "vgg16-plain-lastbn": own("vgg", depth=16, norm="none", last_bn=True),
    "preresnet": own("preresnet", depth=14),
    "preresnet-v1": own("preresnet", depth=14, last_bn=False, shortcut="C"),
    "resnet18": own("resnet_imagenet", depth=18),
    "resnet50-lastbn": own("resnet_imagenet", depth=50, last_bn=True),
    "mobilenet_v2": torchvisions("mobilenet_v2", "features.[0-4].*", "classifier.1"),
    "densenet121": torchvisions(
        "densenet121",
        "*conv0",
        "*denseblock1.denselayer[12].*",
        "*.transition1.conv",
        "last_linear",
    ),
}
# curvlinops has no grouped convolutions.
UNGROUPED = [name for name in CASES if name != "mobilenet_v2"]


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "WIDTHS", (4, 6, 8, 8, 8))
    monkeypatch.setattr(resnet_imagenet, "WIDTH", 4)
    # The one that takes the number from the other first, or it would be imported with the change.
    for module in ("preresnet", "residual"):
        monkeypatch.setattr(f"condexp.models.{module}.STEM_CHANNELS", 4)


def build(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    model = cases.randomised(case.build(case.shape))
    return model, cases.normal(3, *case.shape), cases.labels(3, NUM_CLASSES)


def all_calls(
    model: nn.Module, names: Sequence[str], inputs: Tensor, targets: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and ∂loss/∂output of each layer, by zeros added to the outputs; one call each."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def add_zero(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert name not in seen
            zeros = torch.zeros_like(output, requires_grad=True)
            seen[name] = (args[0].detach().clone(), zeros)
            return output + zeros

        return hook

    handles = [model.get_submodule(n).register_forward_hook(add_zero(n)) for n in names]
    try:
        loss = LOSS(model(inputs), targets)
    finally:
        for handle in handles:
            handle.remove()
    grads = torch.autograd.grad(loss, [zeros for _, zeros in seen.values()])
    return {name: (a, g) for (name, (a, _)), g in zip(seen.items(), grads, strict=True)}


def brute_force(
    model: nn.Module, names: Sequence[str], inputs: Tensor, targets: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """a [N, ...] and g_n = ∂ℓ_n/∂h [N, ...]: one backward pass a sample where none mix."""
    if model.training:
        calls = all_calls(model, names, inputs, targets)
        return {name: (a, len(inputs) * g) for name, (a, g) in calls.items()}
    single = [
        all_calls(model, names, inputs[n : n + 1], targets[n : n + 1]) for n in range(len(inputs))
    ]
    return {
        name: (torch.cat([c[name][0] for c in single]), torch.cat([c[name][1] for c in single]))
        for name in names
    }


def matrices(module: nn.Module, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_x [groups, d, d] and Σ_∇h of one layer, from torch's own unfold."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        assert module.padding_mode == "zeros"
        patches = F.unfold(a, module.kernel_size, module.dilation, module.padding, module.stride)
        blocks = (len(a), module.groups, -1, patches.shape[-1])
        a, g = patches.reshape(blocks), g.reshape(blocks)
    else:
        a, g = a.reshape(len(a), 1, -1, 1), g.reshape(len(g), 1, -1, 1)
    sigma_x = torch.einsum("ngit,ngjt->gij", a, a) / (len(a) * a.shape[-1])
    return sigma_x, torch.einsum("ngit,ngjt->gij", g, g) / len(g)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_factors_equal_brute_force(name: str, training: bool) -> None:
    model, inputs, targets = build(CASES[name])
    model.train(training)
    snapshot = condexp.analyze(
        model, LOSS, inputs, targets, layers=CASES[name].layers, precision="float64"
    )
    assert len(snapshot.layers) >= 7
    expected = brute_force(model, snapshot.layers, inputs, targets)
    for layer in snapshot.layers:
        record = snapshot[layer]
        sigma_x, sigma_g = matrices(model.get_submodule(layer), *expected[layer])
        oracles.close(record.input, oracles.united(sigma_x), RELATIVE)
        oracles.close(record.grad_output, oracles.united(sigma_g), RELATIVE)
        assert record.kfac is not None
        products = torch.stack([
            x.trace() * g.trace() for x, g in zip(sigma_x, sigma_g, strict=True)
        ])
        assert record.kfac.trace == pytest.approx(float(products.sum()), rel=RELATIVE)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("name", UNGROUPED)
def test_factors_equal_curvlinops_kfac_expand(name: str) -> None:
    model, inputs, targets = build(CASES[name])
    model.eval()
    snapshot = condexp.analyze(
        model, LOSS, inputs, targets, layers=CASES[name].layers, precision="float64"
    )
    theirs = factors(model, LOSS, inputs, targets, joint_bias=False, names=snapshot.layers)
    assert set(snapshot.layers) == set(theirs[0]) == set(theirs[1])
    for layer in snapshot.layers:
        oracles.close(snapshot[layer].input, oracles.united(theirs[0][layer][None]), RELATIVE)
        oracles.close(snapshot[layer].grad_output, oracles.united(theirs[1][layer][None]), RELATIVE)


def test_depthwise_convolutions_have_a_block_a_channel() -> None:
    with torch.device("meta"):
        model = from_conf.build("torchvision", (3, 32, 32), NUM_CLASSES, arch="mobilenet_v2")
        catalogue = trace_layers(model, torch.empty(2, 3, 32, 32), AnalysisOptions())
    depthwise = [layer for layer in catalogue.layers if layer.groups > 1]
    assert len(catalogue.layers) == 53
    assert len(depthwise) == 17
    assert all(layer.groups == layer.d_out and layer.d_in == 9 for layer in depthwise)


@pytest.mark.parametrize(
    ("arch", "projections", "rest_of_attention"),
    [
        (
            "vit_b_16",
            {"self_attention.in_proj", "self_attention.out_proj"},
            {"self_attention.in_proj.bias", "self_attention.out_proj.bias"},
        ),
        ("swin_t", {"attn.qkv", "attn.proj"}, {"attn"}),
    ],
)
def test_projections_of_attention_are_seen_where_functions_use_them(
    arch: str, projections: set[str], rest_of_attention: set[str]
) -> None:
    with torch.device("meta"):
        model = from_conf.build("torchvision", (3, 224, 224), NUM_CLASSES, arch=arch)
        catalogue = trace_layers(model, torch.empty(2, 3, 224, 224), AnalysisOptions())
    measured = {layer.name for layer in catalogue.layers}
    rest = {module.name: module.reason for module in catalogue.not_analysed}
    blocks = [n.removesuffix(".mlp.0") for n in measured if n.endswith(".mlp.0")]
    assert len(blocks) == 12
    for block in blocks:
        assert {f"{block}.{name}" for name in projections} <= measured
        assert {f"{block}.{name}" for name in rest_of_attention} <= set(rest)
        assert f"{block}.mlp.3" in measured


def test_what_surrounds_attention_is_measured_right() -> None:
    """torch's MultiheadAttention between two linear layers, in train mode (no fast path)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.fc = nn.Linear(6, NUM_CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.embed(inputs)
            outputs: Tensor = self.fc(self.attention(hidden, hidden, hidden)[0].mean(1))
            return outputs

    model, inputs = cases.randomised(Net()), cases.normal(3, 7, 5)
    targets = cases.labels(3, NUM_CLASSES)
    snapshot = condexp.analyze(model, LOSS, inputs, targets, precision="float64")
    assert snapshot.layers == ("embed", "attention.in_proj", "attention.out_proj", "fc")
    a, g = all_calls(model.eval(), ["embed"], inputs, targets)["embed"]
    rows, grads = a.flatten(0, 1), 3 * g.flatten(0, 1)
    oracles.close(snapshot["embed"].input, oracles.united((rows.T @ rows / 21)[None]), RELATIVE)
    oracles.close(
        snapshot["embed"].grad_output, oracles.united((grads.T @ grads / 3)[None]), RELATIVE
    )


def test_tables_of_positions_are_not_analysed() -> None:
    """Swin v2 applies an MLP to a table of positions: 15² rows, whatever the batch."""
    with torch.device("meta"):
        model = from_conf.build("torchvision", (3, 224, 224), NUM_CLASSES, arch="swin_v2_t")
        inputs = torch.empty(2, 3, 224, 224)
        catalogue = trace_layers(model, inputs, AnalysisOptions())
    tables = [entry for entry in catalogue.not_analysed if ".cpb_mlp." in entry.name]
    assert len(tables) == 24
    assert all("maps a table of the model's own" in entry.reason for entry in tables)
    assert not any(".cpb_mlp." in layer.name for layer in catalogue.layers)
    assert catalogue.layers[-1].name == "head"
