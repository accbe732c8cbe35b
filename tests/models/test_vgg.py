import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from condexp.errors import InputError
from condexp.models import vgg
from tests.from_conf import build
from tests.models import published


def meta(depth: int, size: int = 32, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build("vgg", (3, size, size), 10, depth=depth, **options)


@pytest.mark.parametrize(
    ("depth", "convolutions"),
    [(11, 9_220_480), (13, 9_404_992), (16, 14_714_688), (19, 20_024_384)],
)
def test_published_sizes_of_the_convolutions(depth: int, convolutions: int) -> None:
    """With biases: torchvision's ``vgg16().features`` has 14,714,688 parameters."""
    model = meta(depth, norm="none")
    assert published.num_parameters(model.get_submodule("stages")) == convolutions
    assert published.num_parameters(model) == convolutions + 512 * 10 + 10
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == depth - 3  # the paper counts three linear layers
    assert published.num_parameters(meta(depth)) == convolutions + 5130 + 2 * sum(
        layer.out_channels for layer in layers
    )


@pytest.mark.parametrize(
    ("size", "left"), [(8, 1), (9, 1), (15, 1), (28, 1), (32, 1), (63, 1), (64, 2), (224, 7)]
)
def test_pooling_stops_at_one_pixel(size: int, left: int) -> None:
    stages = meta(11, size).get_submodule("stages")
    assert stages(torch.empty(2, 3, size, size, device="meta")).shape == (2, 512, left, left)
    pools = [name for name, m in stages.named_modules() if isinstance(m, nn.MaxPool2d)]
    assert pools == [f"{stage}.pool" for stage in range({8: 3, 9: 3, 15: 3, 28: 4}.get(size, 5))]


def test_convolutions_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """vgg11_bn's own features, in training and evaluation; images that end at 2×2 px."""
    torch.manual_seed(0)
    # Without vgg11_bn's linear layers, which have 124 million parameters.
    features = published.perturbed(make_layers(cfgs["A"], batch_norm=True))
    ours = build("vgg", (3, 64, 64), 10, depth=11).double()
    published.copy_in_order(ours.get_submodule("stages"), features)
    inputs = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for training in (True, False):
        ours.train(training)
        features.train(training)
        # The same operations, in the same order.
        torch.testing.assert_close(ours.get_submodule("stages")(inputs), features(inputs))
        fc = ours.get_submodule("fc")
        torch.testing.assert_close(ours(inputs), fc(features(inputs).mean((2, 3))))


def test_last_bn_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "WIDTHS", (4, 6, 8, 8, 8))
    seen: list[Tensor] = []
    model = build("vgg", (1, 8, 8), 2, depth=13, last_bn=True).double()
    model.get_submodule("fc").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(6, 1, 8, 8, dtype=torch.float64))
    # A mean of six numbers of order 1, rounded.
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(8).double(), rtol=0, atol=1e-14)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers == [f"stages.{s}.{i}.conv" for s in range(5) for i in range(2)] + ["fc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 12}, "unknown model.depth '12': allowed are 11, 13, 16, 19"),
        ({"input_shape": (1, 7, 8)}, "7x8 px are too small.*8x8"),
        ({"input_shape": (20,)}, r"images of shape \(C, H, W\)"),
        ({"norm": "bn"}, "allowed are none, batch"),
        ({"num_outputs": 0}, "num_outputs is 0"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"input_shape": (1, 8, 8), "num_outputs": 10, "depth": 11}
    with pytest.raises(InputError, match=message):
        build("vgg", **{**good, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("position", "order"),
    [("before", ["conv", "norm", "activation"]), ("after", ["conv", "activation", "norm"])],
)
def test_where_the_normalisation_stands(position: str, order: list[str]) -> None:
    model = meta(11, norm_position=position)
    for block in ("stages.0.0", "stages.4.1"):
        assert [name for name, _ in model.get_submodule(block).named_children()] == order
