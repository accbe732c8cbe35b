import math

import pytest
import torch
from torch import Tensor, nn

from condexp.models.choices import Init
from condexp.models.init import initialise
from tests.from_conf import build

# Layers with 120,000 and 115,200 weights; fans 300 → 400, and 64·9 = 576 → 200·9 = 1800.
DEVIATIONS = {
    Init.LECUN: (1 / 300, 1 / 576),
    Init.HE: (2 / 300, 2 / 1800),
    Init.XAVIER: (2 / 700, 2 / 2376),
    Init.NORMAL: (1e-4, 1e-4),
}


def drawn(layer: nn.Module, init: Init | str, scale: float = 1.0) -> Tensor:
    torch.manual_seed(0)
    initialise(layer, init, scale)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double()


@pytest.mark.parametrize("init", DEVIATIONS)
@pytest.mark.parametrize("index", [0, 1], ids=["linear", "conv"])
def test_weights_are_gaussian_with_the_documented_deviation(init: Init, index: int) -> None:
    layer = (nn.Linear(300, 400), nn.Conv2d(64, 200, 3))[index]
    weight = drawn(layer, init) / math.sqrt(DEVIATIONS[init][index])
    num = weight.numel()
    # Five standard errors: of a mean 1/√n, of a deviation 1/√(2n), of a share √(p(1 − p)/n).
    assert abs(weight.mean().item()) < 5 / math.sqrt(num)
    assert abs(weight.std().item() - 1) < 5 / math.sqrt(2 * num)
    within_one = (weight.abs() < 1).double().mean().item()
    assert abs(within_one - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / num)


def test_fan_in_of_a_grouped_convolution_is_that_of_a_group() -> None:
    weight = drawn(nn.Conv2d(64, 128, 3, groups=4), Init.LECUN)
    # Five standard errors, as above.
    expected = math.sqrt(1 / (16 * 9))
    assert abs(weight.std().item() / expected - 1) < 5 / math.sqrt(2 * weight.numel())


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_orthogonal_rows_or_columns(shape: tuple[int, int]) -> None:
    weight = drawn(nn.Linear(shape[1], shape[0], dtype=torch.float64), Init.ORTHOGONAL, 3.0)
    short = weight if shape[0] < shape[1] else weight.T
    # Products of a QR in float64, a few roundings of numbers up to 9.
    torch.testing.assert_close(short @ short.T, 9 * torch.eye(4).double(), rtol=0, atol=1e-13)


def test_orthogonal_convolution_is_orthogonal_on_patches() -> None:
    weight = drawn(nn.Conv2d(2, 4, 3, dtype=torch.float64), Init.ORTHOGONAL).flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(4).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("init", Init)
def test_scale_multiplies_and_the_seed_determines(init: Init) -> None:
    once, again = drawn(nn.Linear(20, 10), init), drawn(nn.Linear(20, 10), init)
    assert torch.equal(once, again)
    # One float32 rounding of the product.
    torch.testing.assert_close(drawn(nn.Linear(20, 10), init, 3.0), 3 * once, rtol=3e-7, atol=0)


def test_biases_are_zero() -> None:
    layer = nn.Linear(3, 2)
    initialise(layer, Init.HE)
    assert torch.equal(layer.bias, torch.zeros(2))


@pytest.mark.parametrize("init", Init)
def test_models_that_differ_in_normalisation_alone_start_alike(init: Init) -> None:
    def weights(norm: str, last_bn: bool) -> list[Tensor]:
        torch.manual_seed(3)
        mlp = build("mlp", (5,), 2, depth=3, width=8, norm=norm, last_bn=last_bn, init=init)
        resnet = build("resnet", (1, 8, 8), 2, depth=8, norm=norm, last_bn=last_bn, init=init)
        layers = [*mlp.modules(), *resnet.modules()]
        return [layer.weight for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]

    for others in (weights("batch", False), weights("center", True), weights("layer", True)):
        assert all(map(torch.equal, weights("none", False), others))
