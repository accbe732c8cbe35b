import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.models.choices import Activation
from tests.from_conf import build


def names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if not list(module.children())]


def test_module_names_and_positions() -> None:
    before = build("mlp", (1, 4, 4), 3, depth=2, width=5, norm="batch", last_bn=True)
    assert names(before) == [
        "flatten",
        "layers.0.linear",
        "layers.0.norm",
        "layers.0.activation",
        "last_bn",
        "fc",
    ]
    after = build("mlp", (1, 4, 4), 3, depth=2, width=5, norm="batch", norm_position="after")
    assert names(after)[1:4] == ["layers.0.linear", "layers.0.activation", "layers.0.norm"]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_counts_linear_layers(depth: int) -> None:
    model = build("mlp", (3, 8, 8), 4, depth=depth, width=6, norm="layer")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    sizes = [192, *[6] * (depth - 1), 4]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [*pairwise(sizes)]


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
        ("gelu", nn.functional.gelu),
        ("identity", lambda x: x),
    ],
)
@pytest.mark.parametrize("position", ["before", "after"])
def test_forward_is_the_composition(activation: str, function: object, position: str) -> None:
    assert activation in list(Activation)
    torch.manual_seed(0)
    model = build(
        "mlp",
        (4,),
        2,
        depth=2,
        width=5,
        activation=activation,
        norm="layer",
        norm_position=position,
    ).double()
    inputs = torch.randn(6, 4, dtype=torch.float64)
    hidden = inputs @ model.get_parameter("layers.0.linear.weight").T
    assert callable(function)

    def norm(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (5,))

    hidden = function(norm(hidden)) if position == "before" else norm(function(hidden))
    # A handful of float64 roundings.
    torch.testing.assert_close(
        model(inputs), hidden @ model.get_parameter("fc.weight").T, rtol=1e-12, atol=1e-12
    )


def test_bias_false_leaves_no_bias_anywhere() -> None:
    model = build("mlp", (4,), 2, depth=3, width=5, norm="none", bias=False)
    assert [name for name, _ in model.named_parameters()] == [
        "layers.0.linear.weight",
        "layers.1.linear.weight",
        "fc.weight",
    ]


def test_last_bn_standardises_the_last_layers_input() -> None:
    torch.manual_seed(0)
    model = build(
        "mlp", (4,), 2, depth=3, width=5, norm="none", last_bn=True, activation="tanh"
    ).double()
    seen: list[Tensor] = []
    model.get_submodule("fc").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(9, 4, dtype=torch.float64))
    # A mean of numbers of order 1, rounded.
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(5).double(), rtol=0, atol=1e-14)


def test_linear_is_one_layer_on_the_flattened_input() -> None:
    model = build("linear", (3, 2, 2), 4, bias=True).double()
    inputs = torch.arange(24.0).double().view(2, 3, 2, 2)
    weight, bias = model.get_parameter("fc.weight"), model.get_parameter("fc.bias")
    # One product of length 12 in another order.
    torch.testing.assert_close(
        model(inputs), inputs.flatten(1) @ weight.T + bias, rtol=1e-13, atol=1e-13
    )
    assert [name for name, _ in build("linear", (5,), 2, bias=False).named_parameters()] == [
        "fc.weight"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "model.depth=0: it must be at least 1"),
        ({"width": 0}, "model.width=0: it must be at least 1"),
        ({"activation": "rellu"}, "Did you mean 'relu'"),
        ({"norm": "bach"}, "Did you mean 'batch'"),
        ({"norm_position": "befor"}, "Did you mean 'before'"),
        ({"init": "hee"}, "Did you mean 'he'"),
        ({"init_scale": 0.0}, "init_scale=0.0: it must be greater than 0"),
        ({"init_scale": -1.0}, "init_scale=-1.0: it must be greater than 0"),
        ({"init_scale": math.nan}, "init_scale=nan: it must be greater than 0"),
        ({"init_scale": math.inf}, "init_scale=inf: it must be greater than 0"),
        ({"input_shape": ()}, "no features"),
        ({"num_outputs": 0}, "num_outputs is 0"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"input_shape": (4,), "num_outputs": 2, "depth": 2, "width": 3}
    with pytest.raises(InputError, match=message):
        build("mlp", **{**good, **arguments})  # type: ignore[arg-type]
