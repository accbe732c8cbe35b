"""Multilayer perceptrons."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from condexp.errors import one_of, within
from condexp.models.block import make_block
from condexp.models.checks import count_features
from condexp.models.choices import Activation, Init, Norm, NormPosition
from condexp.models.init import initialise
from condexp.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/mlp.yaml``."""

    depth: int = within(1, 10_000)
    width: int = within(1)
    activation: str = one_of(Activation)
    norm: str = one_of(Norm)
    norm_position: str = one_of(NormPosition)
    bias: bool
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a multilayer perceptron on the flattened input.

    Hidden layers are ``layers.0.linear``, ``layers.0.norm``, ``layers.0.activation``, then
    ``layers.1…``; then ``last_bn`` if there is one, and the last linear layer ``fc``.

    Args:
        spec: The keys.
        input_shape: Shape of one sample, (d,) or (C, H, W).
        num_outputs: Outputs of the last layer.

    Returns:
        The model, inputs [N, *input_shape] to [N, num_outputs].
    """
    d_in = count_features(spec.name, input_shape, num_outputs)
    layers = nn.Sequential()
    for _ in range(spec.depth - 1):
        linear = nn.Linear(d_in, spec.width, bias=spec.bias)
        layers.append(make_block(linear, spec.norm, spec.norm_position, spec.activation))
        d_in = spec.width
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), layers=layers))
    if spec.last_bn:
        model.add_module("last_bn", nn.BatchNorm1d(d_in))
    model.add_module("fc", nn.Linear(d_in, num_outputs, bias=spec.bias))
    initialise(model, spec.init, spec.init_scale)
    return model
