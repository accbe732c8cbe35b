"""Initial weights.

With ``fan_in = (C_in/groups)·k_h·k_w`` and ``fan_out = d_out·k_h·k_w`` (a linear layer: ``d_in``
and ``d_out``), the weights are drawn independently from

==========  =====================================================================================
lecun       N(0, 1/fan_in): LeCun et al. 1998, §4.6
he          N(0, 2/fan_out) for convolutions, as in ResNet's released code; N(0, 2/fan_in) for
            linear layers: He et al. 2015, §2.2, eq. 14 (backward) and 10 (forward)
xavier      N(0, 2/(fan_in + fan_out)): Glorot & Bengio 2010, eq. 12, as a Gaussian
orthogonal  uniformly among matrices (d_out × fan_in) with orthonormal rows or columns,
            whichever are fewer: Saxe et al. 2014
normal      N(0, 0.01²): Krizhevsky et al. 2012, §5
==========  =====================================================================================
"""

import math

import torch
from torch import Tensor, nn

from condexp.models.choices import Init

NORMAL_DEVIATION = 0.01


def weight_deviation(init: Init, weight: Tensor) -> float:
    """Return the standard deviation of a layer's initial weights.

    Args:
        init: How the weights are drawn, not ``orthogonal``.
        weight: The layer's weight, [d_out, d_in] or [d_out, C_in/groups, k_h, k_w].

    Returns:
        The standard deviation, by the table of this module.
    """
    fan_in = weight[0].numel()
    fan_out = weight.numel() // weight.shape[1]
    match init:
        case Init.LECUN:
            return math.sqrt(1 / fan_in)
        case Init.HE:
            return math.sqrt(2 / (fan_out if weight.dim() > 2 else fan_in))
        case Init.XAVIER:
            return math.sqrt(2 / (fan_in + fan_out))
        case _:
            return NORMAL_DEVIATION


@torch.no_grad()
def initialise(model: nn.Module, init: Init | str, scale: float = 1.0) -> None:
    """Draw the weights of all linear and convolutional layers anew; their biases become zero.

    Random numbers come from torch's global generator, layer by layer in the order of
    ``model.modules()``: ``torch.manual_seed`` before building a model determines it. Normalisations
    draw none, so models that differ in them alone start from the same weights.

    Args:
        model: The network.
        init: How the weights are drawn.
        scale: Factor on the drawn weights, > 0.
    """
    init = Init(init)
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if init is Init.ORTHOGONAL:
            nn.init.orthogonal_(module.weight, gain=scale)
        else:
            module.weight.normal_(0.0, scale * weight_deviation(init, module.weight))
        if module.bias is not None:
            module.bias.zero_()
