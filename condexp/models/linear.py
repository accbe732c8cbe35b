"""One linear layer on the flattened input: the model whose curvature is known in closed form."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from condexp.errors import one_of, within
from condexp.models.checks import count_features
from condexp.models.choices import Init
from condexp.models.init import initialise
from condexp.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/linear.yaml``."""

    bias: bool
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a linear model, ``h = W a + b`` of the flattened input; the layer is named ``fc``.

    Args:
        spec: The keys.
        input_shape: Shape of one sample, (d,) or (C, H, W).
        num_outputs: Outputs, d_out.

    Returns:
        The model, inputs [N, *input_shape] to [N, num_outputs].
    """
    d_in = count_features(spec.name, input_shape, num_outputs)
    fc = nn.Linear(d_in, num_outputs, bias=spec.bias)
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=fc))
    initialise(model, spec.init, spec.init_scale)
    return model
