"""Multilayer perceptrons."""

from collections import OrderedDict
from collections.abc import Sequence
from enum import StrEnum

from torch import nn

from condexp.errors import choose
from condexp.models.checks import check_sizes, count_features
from condexp.models.init import Init, initialise
from condexp.models.norm import Norm, make_norm


class Activation(StrEnum):
    """Which activation."""

    RELU = "relu"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    GELU = "gelu"
    IDENTITY = "identity"


class NormPosition(StrEnum):
    """Where the normalisation stands with respect to the activation."""

    BEFORE = "before"
    AFTER = "after"


def make_activation(activation: Activation | str) -> nn.Module:
    """Build one activation.

    Args:
        activation: Which one.

    Returns:
        The module; the rectifier works in place.
    """
    match Activation(choose("activation", activation, [str(each) for each in Activation])):
        case Activation.RELU:
            return nn.ReLU(inplace=True)
        case Activation.TANH:
            return nn.Tanh()
        case Activation.SIGMOID:
            return nn.Sigmoid()
        case Activation.GELU:
            return nn.GELU()
        case Activation.IDENTITY:
            return nn.Identity()


def build_mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    depth: int,
    width: int,
    activation: Activation | str = Activation.RELU,
    norm: Norm | str = Norm.NONE,
    norm_position: NormPosition | str = NormPosition.BEFORE,
    init: Init | str = Init.HE,
    init_scale: float = 1.0,
    bias: bool = True,
    last_bn: bool = False,
) -> nn.Module:
    """Build a multilayer perceptron on the flattened input.

    Hidden layers are ``layers.0.linear``, ``layers.0.norm``, ``layers.0.activation``, then
    ``layers.1…``; then ``last_bn`` if there is one, and the last linear layer ``fc``.

    Args:
        input_shape: Shape of one sample, (d,) or (C, H, W).
        num_outputs: Outputs of the last layer.
        depth: Number of linear layers, the last one included.
        width: Outputs of each hidden layer.
        activation: Activation of the hidden layers.
        norm: Normalisation of the hidden layers.
        norm_position: Before or after the activation.
        init: How the weights are drawn.
        init_scale: Factor on the drawn weights.
        bias: Whether linear layers have a bias, the last one too.
        last_bn: Whether a BatchNorm1d stands before the last linear layer.

    Returns:
        The model, inputs [N, *input_shape] to [N, num_outputs].
    """
    check_sizes("mlp", depth=depth, width=width, num_outputs=num_outputs)
    choose("norm_position", norm_position, [str(each) for each in NormPosition])
    d_in = count_features("mlp", input_shape)
    layers = nn.Sequential()
    for _ in range(depth - 1):
        block = OrderedDict[str, nn.Module](linear=nn.Linear(d_in, width, bias=bias))
        block["norm"] = make_norm(norm, width, spatial=False)
        block["activation"] = make_activation(activation)
        if norm_position == NormPosition.AFTER:
            block.move_to_end("norm")
        layers.append(nn.Sequential(block))
        d_in = width
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), layers=layers))
    if last_bn:
        model.add_module("last_bn", nn.BatchNorm1d(d_in))
    model.add_module("fc", nn.Linear(d_in, num_outputs, bias=bias))
    initialise(model, init, init_scale)
    return model
