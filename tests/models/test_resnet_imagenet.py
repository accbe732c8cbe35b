import pytest
import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.models import resnet_imagenet
from tests.from_conf import build
from tests.models import published


def meta(depth: int, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build("resnet_imagenet", (3, 224, 224), 1000, depth=depth, **options)


@pytest.mark.parametrize(
    ("depth", "size"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_published_sizes(depth: int, size: int) -> None:
    model = meta(depth)
    assert published.num_parameters(model) == size
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in layers if "shortcut" not in name]) == depth
    assert (layers[0], layers[1], layers[-1]) == ("conv", "stages.0.0.conv1", "fc")


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_torchvisions(depth: int, training: bool) -> None:
    """The same weights give the same outputs: stem, stride on the 3×3 (v1.5), shortcuts, head."""
    theirs = published.torchvision_net(f"resnet{depth}", 7, 40).train(training)
    ours = build("resnet_imagenet", (3, 40, 40), 7, depth=depth).double().train(training)
    published.copy_in_order(ours, theirs)
    inputs = torch.randn(3, 3, 40, 40, dtype=torch.float64)
    # The same operations but for the mean over positions, through 50 float64 layers.
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-9, atol=1e-9)


def test_last_bn_then_dropout_stand_before_the_last_linear_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resnet_imagenet, "WIDTH", 4)
    torch.manual_seed(0)
    model = build("resnet_imagenet", (1, 8, 8), 2, depth=18, last_bn=True, dropout=0.5).double()
    assert published.num_parameters(model.get_submodule("last_bn")) == 2 * 32
    seen: list[Tensor] = []
    for name in ("dropout", "fc"):
        hook = model.get_submodule(name).register_forward_pre_hook
        hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(16, 1, 8, 8, dtype=torch.float64))
    normalised, dropped = seen
    # A mean of sixteen numbers of order 1, rounded.
    torch.testing.assert_close(normalised.mean(0), torch.zeros(32).double(), rtol=0, atol=1e-14)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * normalised[kept])
    # 512 draws of probability 1/2: six standard deviations are 68.
    assert abs(int(kept.sum()) - 256) < 68
    assert not any(isinstance(m, nn.Dropout) for m in meta(18).modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "unknown model.depth '20': allowed are 18, 34, 50, 101, 152"),
        ({"dropout": 1.0}, "dropout=1.0: it must be at least 0 and less than 1"),
        ({"input_shape": (1, 7, 8)}, "7x8 px are too small.*8x8"),
        ({"norm": "bn"}, "allowed are none, batch"),
        ({"num_outputs": 0}, "num_outputs is 0"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"input_shape": (1, 8, 8), "num_outputs": 10, "depth": 18}
    with pytest.raises(InputError, match=message):
        build("resnet_imagenet", **{**good, **arguments})  # type: ignore[arg-type]
