import pytest
import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.models.choices import Shortcut
from condexp.models.residual import ZeroPadShortcut
from condexp.models.resnet import BasicBlock
from tests.from_conf import build


def num_parameters(depth: int, **options: object) -> int:
    with torch.device("meta"):
        model = build("resnet", (3, 32, 32), 10, depth=depth, **options)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)],
)
def test_sizes_of_he_et_al_table_6(depth: int, millions: float) -> None:
    # Half a unit of the printed last digit.
    tolerance = 0.005 if millions < 1 else 0.05
    assert abs(num_parameters(depth) / 1e6 - millions) < tolerance


def test_sizes_of_the_options() -> None:
    plain = num_parameters(20)
    assert num_parameters(20, last_bn=True) == plain + 2 * 64
    # B projects where the shape changes, C at each of the nine blocks; a norm after each.
    project = {(c_in, c_out): c_in * c_out + 2 * c_out for c_in, c_out in [(16, 32), (32, 64)]}
    assert num_parameters(20, shortcut="B") == plain + sum(project.values())
    same = sum(each * (c * c + 2 * c) for each, c in [(3, 16), (2, 32), (2, 64)])
    assert num_parameters(20, shortcut="C") == plain + sum(project.values()) + same
    assert num_parameters(20, norm="none") == plain - 2 * (7 * 16 + 6 * 32 + 6 * 64)


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_depth_counts_layers_with_weights(depth: int) -> None:
    model = build("resnet", (1, 8, 8), 10, depth=depth)
    layers = [
        name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert len(layers) == depth
    assert layers[:3] == ["conv", "stages.0.0.conv1", "stages.0.0.conv2"]
    assert layers[-1] == "fc"


def test_widen_factor_multiplies_the_stages_not_the_stem() -> None:
    for shortcut in Shortcut:
        model = build("resnet", (1, 8, 8), 10, depth=8, widen_factor=3, shortcut=shortcut)
        assert model.get_parameter("conv.weight").shape[0] == 16
        widths = [model.get_parameter(f"stages.{i}.0.conv2.weight").shape[0] for i in range(3)]
        assert widths == [48, 96, 192]
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_zero_pad_shortcut() -> None:
    inputs = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    outputs = ZeroPadShortcut(2, 2)(inputs)
    assert torch.equal(outputs[:, :3], inputs[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert torch.equal(outputs[:, 3:], torch.zeros(2, 2, 3, 3))


@pytest.mark.parametrize("shortcut", Shortcut)
@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (6, 2)])
def test_block_is_its_formula(shortcut: Shortcut, c_out: int, stride: int) -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, c_out, stride, shortcut, "none").double()
    inputs = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    conv = nn.functional.conv2d
    hidden = conv(inputs, block.conv1.weight, stride=stride, padding=1).relu()
    hidden = conv(hidden, block.conv2.weight, padding=1)
    skip = inputs[:, :, ::stride, ::stride]
    if shortcut is Shortcut.C or (shortcut is Shortcut.B and stride == 2):
        skip = torch.einsum(
            "oi,nihw->nohw", block.get_parameter("shortcut.conv.weight").flatten(1), skip
        )
    elif stride == 2:
        skip = torch.cat([skip, torch.zeros(2, 2, 5, 5).double()], dim=1)
    # Sums of at most 36 products in another order.
    torch.testing.assert_close(block(inputs), (hidden + skip).relu(), rtol=1e-12, atol=1e-12)


def test_last_bn_stands_before_the_last_linear_layer() -> None:
    torch.manual_seed(0)
    seen: list[Tensor] = []
    for last_bn in (False, True):
        model = build("resnet", (3, 8, 8), 10, depth=8, last_bn=last_bn).double()
        model.get_submodule("fc").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(torch.randn(6, 3, 8, 8, dtype=torch.float64))
    plain, normalised = seen
    assert (plain >= 0).all()  # means of rectified values
    # A mean of six numbers of order 1, rounded.
    torch.testing.assert_close(normalised.mean(0), torch.zeros(64).double(), rtol=0, atol=1e-14)


def test_convolutions_are_he_initialised_without_bias() -> None:
    torch.manual_seed(0)
    model = build("resnet", (3, 32, 32), 10, depth=20)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.bias is None for conv in convolutions)
    for conv in convolutions[1:]:
        expected = (2 / (9 * conv.out_channels)) ** 0.5
        # Five standard errors of a deviation.
        tolerance = 5 / (2 * conv.weight.numel()) ** 0.5
        assert abs(conv.weight.std().item() / expected - 1) < tolerance


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(21, "20 and 26"), (9, "8 and 14"), (25, "20 and 26")],
)
def test_wrong_depth_names_the_nearest(depth: int, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"depth {depth} is not 6n \+ 2 .*: {nearest}\."):
        build("resnet", (3, 32, 32), 10, depth=depth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (1, 7, 8)}, "7x8 px are too small.*8x8"),
        ({"input_shape": (20,)}, r"images of shape \(C, H, W\)"),
        ({"depth": 7}, "depth=7: it must be at least 8"),
        ({"depth": 0}, "depth=0: it must be at least 8"),
        ({"shortcut": "D"}, "allowed are A, B, C"),
        ({"norm": "bn"}, "allowed are none, batch"),
        ({"widen_factor": 0}, "widen_factor=0: it must be at least 1"),
        ({"num_outputs": 0}, "num_outputs is 0"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"input_shape": (1, 8, 8), "num_outputs": 10, "depth": 8}
    with pytest.raises(InputError, match=message):
        build("resnet", **{**good, **arguments})  # type: ignore[arg-type]
