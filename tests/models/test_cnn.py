import pytest
import torch
from torch import nn

from condexp.errors import InputError
from tests.from_conf import build


def test_names_and_sizes() -> None:
    model = build("cnn", (3, 8, 9), 5, depth=3, width=8, norm="batch", last_bn=True)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert list(layers) == ["layers.0.conv", "layers.1.conv", "fc"]
    shapes = [tuple(layer.weight.shape) for layer in layers.values()]
    assert shapes == [(8, 3, 3, 3), (8, 8, 3, 3), (5, 8)]
    assert isinstance(model.get_submodule("last_bn"), nn.BatchNorm1d)
    assert model.get_submodule("layers")(torch.zeros(2, 3, 8, 9)).shape == (2, 8, 2, 2)


def test_pooling_stops_at_one_pixel() -> None:
    layers = build("cnn", (1, 8, 8), 2, depth=6, width=4, norm="none").get_submodule("layers")
    assert layers(torch.zeros(2, 1, 8, 8)).shape == (2, 4, 1, 1)
    assert ["pool" in dict(block.named_children()) for block in layers.children()] == [
        *[True] * 3,
        *[False] * 2,
    ]


@pytest.mark.parametrize(
    ("position", "order"),
    [
        ("before", ["conv", "norm", "activation", "pool"]),
        ("after", ["conv", "activation", "norm", "pool"]),
    ],
)
def test_where_the_normalisation_stands(position: str, order: list[str]) -> None:
    model = build("cnn", (1, 8, 8), 2, depth=2, width=4, norm="batch", norm_position=position)
    assert [name for name, _ in model.get_submodule("layers.0").named_children()] == order


def test_a_depth_of_one_is_linear_in_the_mean_pixel() -> None:
    model = build("cnn", (3, 8, 8), 4, depth=1, width=8, bias=False)
    images = torch.randn(5, 3, 8, 8)
    weight = model.get_parameter("fc.weight")
    torch.testing.assert_close(model(images), images.mean((2, 3)) @ weight.T)
    assert all(name == "fc.weight" for name, _ in model.named_parameters())


def test_refuses() -> None:
    with pytest.raises(InputError, match=r"model\.width=0: it must be at least 1"):
        build("cnn", (1, 8, 8), 2, depth=2, width=0)
    with pytest.raises(InputError, match="cnn needs images of shape"):
        build("cnn", (8,), 2, depth=2, width=4)
    with pytest.raises(InputError, match="norm_position"):
        build("cnn", (1, 8, 8), 2, depth=2, width=4, norm_position="befor")
