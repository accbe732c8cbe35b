"""Every model takes every input: forward, backward, and the shape of the outputs."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from condexp.models import resnet_imagenet, vgg
from condexp.models.choices import Norm
from tests.from_conf import build

Builder = Callable[[tuple[int, ...], int, Norm], nn.Module]

BUILDERS: dict[str, Builder] = {
    "mlp": lambda shape, outputs, norm: build("mlp", shape, outputs, depth=3, width=10, norm=norm),
    "mlp-after": lambda shape, outputs, norm: build(
        "mlp", shape, outputs, depth=3, width=10, norm=norm, norm_position="after", last_bn=True
    ),
    "cnn": lambda shape, outputs, norm: build(
        "cnn", shape, outputs, depth=3, width=8, norm=norm, norm_position="after"
    ),
    "vgg": lambda shape, outputs, norm: build("vgg", shape, outputs, depth=11, norm=norm),
    "vgg-last-bn": lambda shape, outputs, norm: build(
        "vgg", shape, outputs, depth=16, norm=norm, last_bn=True
    ),
    "resnet": lambda shape, outputs, norm: build(
        "resnet", shape, outputs, depth=8, norm=norm, last_bn=True
    ),
    "resnet-C": lambda shape, outputs, norm: build(
        "resnet", shape, outputs, depth=8, norm=norm, shortcut="C"
    ),
    "preresnet": lambda shape, outputs, norm: build(
        "preresnet", shape, outputs, depth=8, norm=norm
    ),
    "preresnet-v1": lambda shape, outputs, norm: build(
        "preresnet", shape, outputs, depth=8, norm=norm, shortcut="B", last_bn=False
    ),
    "resnet18": lambda shape, outputs, norm: build(
        "resnet_imagenet", shape, outputs, depth=18, norm=norm
    ),
    "resnet50": lambda shape, outputs, norm: build(
        "resnet_imagenet", shape, outputs, depth=50, norm=norm, last_bn=True, dropout=0.3
    ),
}


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published widths are checked on the meta device."""
    monkeypatch.setattr(vgg, "WIDTHS", (4, 6, 8, 8, 8))
    monkeypatch.setattr(resnet_imagenet, "WIDTH", 8)


def check(model: nn.Module, shape: tuple[int, ...], num_outputs: int) -> None:
    # Enough samples that no channel of 1×1 px is the same in all: `scale` would blow that up.
    outputs = model(torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)))
    assert outputs.shape == (8, num_outputs)
    torch.autograd.backward(nn.functional.cross_entropy(outputs, torch.arange(8) % 2))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.get_parameter("fc.weight").grad.abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("num_outputs", [2, 10, 100])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("name", BUILDERS)
def test_forward_and_backward(name: str, size: int, channels: int, num_outputs: int) -> None:
    torch.manual_seed(0)
    shape = (channels, size, size)
    check(BUILDERS[name](shape, num_outputs, Norm.BATCH), shape, num_outputs)


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("norm", [norm for norm in Norm if norm is not Norm.BATCH])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_norm(name: str, norm: Norm, size: int) -> None:
    torch.manual_seed(0)
    shape = (1, size, size)
    check(BUILDERS[name](shape, 10, norm), shape, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (7,)])
def test_linear_forward_and_backward(shape: tuple[int, ...]) -> None:
    check(build("linear", shape, 4, bias=True), shape, 4)


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 8, 21)])
@pytest.mark.parametrize("name", ["vgg", "resnet", "preresnet", "resnet18"])
def test_large_and_oblong_images(name: str, shape: tuple[int, ...]) -> None:
    check(BUILDERS[name](shape, 10, Norm.BATCH), shape, 10)


@pytest.mark.parametrize("name", BUILDERS)
def test_one_sample_in_eval_mode(name: str) -> None:
    model = BUILDERS[name]((1, 8, 8), 2, Norm.SCALE).eval()
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


@pytest.mark.parametrize("size", [8, 28, 64])
@pytest.mark.parametrize(
    ("name", "depth"),
    [("vgg", 19), ("resnet", 110), ("preresnet", 110), ("resnet_imagenet", 152)],
)
def test_published_depths_and_widths_on_meta(
    name: str, depth: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with torch.device("meta"):
        model = build(name, (1, size, size), 100, depth=depth)
        outputs = model(torch.empty(2, 1, size, size))
        assert outputs.shape == (2, 100)
        outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("size", "num_outputs"), [(32, 2), (32, 10), (64, 100)])
@pytest.mark.parametrize("arch", ["densenet121", "mobilenet_v2", "resnet18", "shufflenet_v2_x0_5"])
def test_torchvision_on_meta(arch: str, size: int, num_outputs: int) -> None:
    with torch.device("meta"):
        model = build("torchvision", (3, size, size), num_outputs, arch=arch)
        outputs = model(torch.empty(2, 3, size, size))
        assert outputs.shape == (2, num_outputs)
        outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
