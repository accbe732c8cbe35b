"""One linear layer on the flattened input: the model whose curvature is known in closed form."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from condexp.models.checks import check_sizes, count_features
from condexp.models.choices import Init
from condexp.models.init import initialise


def build_linear(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    bias: bool = True,
    init: Init | str = Init.LECUN,
    init_scale: float = 1.0,
) -> nn.Module:
    """Build a linear model, ``h = W a + b`` of the flattened input; the layer is named ``fc``.

    Args:
        input_shape: Shape of one sample, (d,) or (C, H, W).
        num_outputs: Outputs, d_out.
        bias: Whether there is a bias.
        init: How the weights are drawn.
        init_scale: Factor on the drawn weights.

    Returns:
        The model, inputs [N, *input_shape] to [N, num_outputs].
    """
    check_sizes("linear", num_outputs=num_outputs)
    fc = nn.Linear(count_features("linear", input_shape), num_outputs, bias=bias)
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=fc))
    initialise(model, init, init_scale)
    return model
