"""The parts of plain networks: blocks of a layer with weights, and the head of a CNN."""

from collections import OrderedDict

from torch import Tensor, nn

from condexp.models.choices import Activation, Norm, NormPosition
from condexp.models.norm import make_norm


def make_activation(activation: Activation | str) -> nn.Module:
    """Build one activation.

    Args:
        activation: Which one.

    Returns:
        The module; the rectifier works in place.
    """
    match Activation(activation):
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


def add_pooling(block: nn.Sequential, side: int) -> int:
    """Append 2×2 max pooling as ``pool``, where height and width are 2 px at least.

    Args:
        block: What is followed by it.
        side: The smaller of height and width.

    Returns:
        The smaller of them afterwards.
    """
    if side < 2:
        return side
    block.add_module("pool", nn.MaxPool2d(2))
    return side // 2


class PositionMean(nn.Module):
    """The mean over positions."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Average.

        Args:
            inputs: Activations [N, C, H, W].

        Returns:
            Means [N, C].
        """
        # A plain mean: the adaptive pooling's backward pass is not deterministic on CUDA.
        return inputs.mean((2, 3))


def make_classifier(
    name: str,
    convolutions: nn.Sequential,
    channels: int,
    num_outputs: int,
    *,
    last_bn: bool,
    bias: bool = True,
) -> nn.Sequential:
    """Put the mean over positions and a linear layer on top of convolutions.

    Args:
        name: What the convolutions are called in the network.
        convolutions: They.
        channels: Channels of their output.
        num_outputs: Outputs of the last layer.
        last_bn: Whether a BatchNorm1d stands before the last linear layer, ``fc``.
        bias: Whether ``fc`` has a bias.

    Returns:
        The network, images [N, C, H, W] to [N, num_outputs].
    """
    model = nn.Sequential(OrderedDict({name: convolutions, "mean": PositionMean()}))
    model.add_module("last_bn", nn.BatchNorm1d(channels) if last_bn else nn.Identity())
    model.add_module("fc", nn.Linear(channels, num_outputs, bias=bias))
    return model
