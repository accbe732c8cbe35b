"""Multilayer perceptrons."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from condexp.models.block import make_block
from condexp.models.checks import check_sizes, count_features
from condexp.models.choices import Activation, Init, Norm, NormPosition
from condexp.models.init import initialise


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
    d_in = count_features("mlp", input_shape)
    layers = nn.Sequential()
    for _ in range(depth - 1):
        linear = nn.Linear(d_in, width, bias=bias)
        layers.append(make_block(linear, norm, norm_position, activation))
        d_in = width
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), layers=layers))
    if last_bn:
        model.add_module("last_bn", nn.BatchNorm1d(d_in))
    model.add_module("fc", nn.Linear(d_in, num_outputs, bias=bias))
    initialise(model, init, init_scale)
    return model
