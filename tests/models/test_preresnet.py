import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.models.choices import Shortcut
from tests import cases
from tests.from_conf import build
from tests.models import published


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_sizes_are_those_of_resnet(depth: int) -> None:
    """He et al. 2016b move normalisations: the final one's 64 channels make up for 16 + 16 + 32."""
    with torch.device("meta"):
        ours, resnet = (
            build(name, (3, 32, 32), 10, depth=depth) for name in ("preresnet", "resnet")
        )
        without = build("preresnet", (3, 32, 32), 10, depth=depth, last_bn=False)
    assert published.num_parameters(ours) == published.num_parameters(resnet)
    assert published.num_parameters(ours) - published.num_parameters(without) == 2 * 64


def test_projections_have_no_normalisation() -> None:
    with torch.device("meta"):
        plain, b, c = (build("preresnet", (3, 32, 32), 10, depth=20, shortcut=s) for s in Shortcut)
    size = published.num_parameters(plain)
    assert published.num_parameters(b) == size + 16 * 32 + 32 * 64
    assert published.num_parameters(c) == published.num_parameters(b) + 3 * 16**2 + 2 * (
        32**2 + 64**2
    )


def reference(model: nn.Module, inputs: Tensor, shortcut: Shortcut, num_blocks: int) -> Tensor:
    """The released code's network, line by line, from the model's weights (batch statistics)."""
    weights = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        gamma, beta = (weights[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return gamma * (x - mean) / (var + 1e-5).sqrt() + beta

    x = F.conv2d(inputs, weights["conv.weight"], padding=1)
    for stage in range(3):
        for block in range(num_blocks):
            name, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            active = norm(x, f"{name}.norm1").relu()
            skip = active if block == 0 else x
            if f"{name}.shortcut.conv.weight" in weights:
                skip = F.conv2d(skip, weights[f"{name}.shortcut.conv.weight"], stride=stride)
            elif stride == 2:
                skip = skip[..., ::2, ::2]
                skip = torch.cat([skip, torch.zeros_like(skip)], dim=1)
            y = F.conv2d(active, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(
                norm(y, f"{name}.norm2").relu(), weights[f"{name}.conv2.weight"], padding=1
            )
            x = y + skip
    if "last_bn.weight" in weights:
        x = norm(x, "last_bn")
    return F.linear(x.relu().mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize("last_bn", [True, False])
@pytest.mark.parametrize("shortcut", Shortcut)
def test_outputs_are_the_released_networks(shortcut: Shortcut, last_bn: bool) -> None:
    model = build("preresnet", (3, 12, 12), 5, depth=14, shortcut=shortcut, last_bn=last_bn)
    cases.randomised(model)
    inputs = cases.normal(4, 3, 12, 12)
    expected = reference(model, inputs, shortcut, 2)
    # Sums of some hundred float64 products in another order, through 14 layers.
    torch.testing.assert_close(model(inputs), expected, rtol=1e-10, atol=1e-10)


def test_without_normalisation_the_shortcut_is_the_raw_input() -> None:
    """An activation in place would spoil it."""
    model = build("preresnet", (1, 8, 8), 2, depth=14, norm="none", last_bn=False).double()
    block = model.get_submodule("stages.0.1")
    inputs = cases.normal(2, 16, 8, 8)
    before = inputs.clone()
    conv1, conv2 = (block.get_parameter(f"{name}.weight") for name in ("conv1", "conv2"))
    hidden = F.conv2d(F.conv2d(inputs.relu(), conv1, padding=1).relu(), conv2, padding=1)
    torch.testing.assert_close(block(inputs), inputs + hidden)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("last_bn", [True, False])
def test_the_last_rectifier_stays(last_bn: bool) -> None:
    model = build("preresnet", (1, 8, 8), 2, depth=8, norm="none", last_bn=last_bn)
    seen: list[Tensor] = []
    model.get_submodule("fc").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(4, 1, 8, 8))
    assert (seen[0] >= 0).all()
    assert isinstance(model.get_submodule("last_bn"), nn.BatchNorm2d if last_bn else nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, r"preresnet: depth 21 is not 6n \+ 2 .*: 20 and 26\."),
        ({"input_shape": (1, 7, 8)}, "preresnet: images of 7x8 px are too small"),
        ({"shortcut": "D"}, "allowed are A, B, C"),
        ({"widen_factor": 0}, "widen_factor=0: it must be at least 1"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"input_shape": (1, 8, 8), "num_outputs": 10, "depth": 8}
    with pytest.raises(InputError, match=message):
        build("preresnet", **{**good, **arguments})  # type: ignore[arg-type]
