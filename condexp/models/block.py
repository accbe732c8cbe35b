"""The block of plain networks: a layer with weights, its normalisation and its activation."""

from collections import OrderedDict
from enum import StrEnum

from torch import nn

from condexp.errors import choose
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


def make_block(
    layer: nn.Linear | nn.Conv2d,
    norm: Norm | str,
    norm_position: NormPosition | str = NormPosition.BEFORE,
    activation: Activation | str = Activation.RELU,
) -> nn.Sequential:
    """Build one block, with modules ``linear`` or ``conv``, ``norm`` and ``activation``.

    Args:
        layer: The layer with weights.
        norm: Normalisation of the block.
        norm_position: Before or after the activation.
        activation: Activation of the block.

    Returns:
        The block.
    """
    choose("norm_position", norm_position, [str(each) for each in NormPosition])
    block = OrderedDict[str, nn.Module]()
    if isinstance(layer, nn.Linear):
        block["linear"] = layer
        block["norm"] = make_norm(norm, layer.out_features, spatial=False)
    else:
        block["conv"] = layer
        block["norm"] = make_norm(norm, layer.out_channels, spatial=True)
    block["activation"] = make_activation(activation)
    if norm_position == NormPosition.AFTER:
        block.move_to_end("norm")
    return nn.Sequential(block)
