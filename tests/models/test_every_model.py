"""Every model takes every input: forward, backward, and the shape of the outputs."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from condexp.models.linear import build_linear
from condexp.models.mlp import build_mlp
from condexp.models.norm import Norm
from condexp.models.resnet import build_resnet

Builder = Callable[[tuple[int, ...], int, Norm], nn.Module]

BUILDERS: dict[str, Builder] = {
    "mlp": lambda shape, outputs, norm: build_mlp(shape, outputs, depth=3, width=10, norm=norm),
    "mlp-after": lambda shape, outputs, norm: build_mlp(
        shape, outputs, depth=3, width=10, norm=norm, norm_position="after", last_bn=True
    ),
    "resnet": lambda shape, outputs, norm: build_resnet(
        shape, outputs, depth=8, norm=norm, last_bn=True
    ),
    "resnet-C": lambda shape, outputs, norm: build_resnet(
        shape, outputs, depth=8, norm=norm, shortcut="C"
    ),
}


def check(model: nn.Module, shape: tuple[int, ...], num_outputs: int) -> None:
    outputs = model(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert outputs.shape == (3, num_outputs)
    torch.autograd.backward(nn.functional.cross_entropy(outputs, torch.tensor([0, 1, 0])))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.get_parameter("fc.weight").grad.abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("num_outputs", [2, 10])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("name", BUILDERS)
def test_forward_and_backward(
    name: str, norm: Norm, size: int, channels: int, num_outputs: int
) -> None:
    torch.manual_seed(0)
    shape = (channels, size, size)
    check(BUILDERS[name](shape, num_outputs, norm), shape, num_outputs)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (7,)])
def test_linear_forward_and_backward(shape: tuple[int, ...]) -> None:
    check(build_linear(shape, 4), shape, 4)


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 8, 21)])
def test_large_and_oblong_images(shape: tuple[int, ...]) -> None:
    check(build_resnet(shape, 10, depth=8), shape, 10)


@pytest.mark.parametrize("name", BUILDERS)
def test_one_sample_in_eval_mode(name: str) -> None:
    model = BUILDERS[name]((1, 8, 8), 2, Norm.SCALE).eval()
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
