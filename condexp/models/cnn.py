"""Small plain convolutional networks, whose layers' exact Fisher blocks can be had (claim 1)."""

from collections.abc import Sequence

from torch import nn

from condexp.models.block import add_pooling, make_block, make_classifier
from condexp.models.checks import check_image, check_sizes
from condexp.models.choices import Activation, Init, Norm, NormPosition
from condexp.models.init import initialise


def build_cnn(
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
    """Build a plain network of 3×3 convolutions of stride 1, padded by 1.

    Convolutions are ``layers.0.conv``, ``layers.1.conv``, … with their ``norm``, ``activation``
    and, as long as height and width are 2 px at least, 2×2 max pooling; then the mean over
    positions, ``last_bn`` if there is one, and ``fc``.

    Args:
        input_shape: Shape of one image, (C, H, W), from 8 px on.
        num_outputs: Outputs of the last layer.
        depth: Number of layers with weights, the last one included, as for
            :func:`~condexp.models.mlp.build_mlp`.
        width: Channels of each convolution's output.
        activation: Activation after the convolutions.
        norm: Normalisation of the convolutions.
        norm_position: Before or after the activation.
        init: How the weights are drawn.
        init_scale: Factor on the drawn weights.
        bias: Whether layers have a bias, the last one too.
        last_bn: Whether a BatchNorm1d stands before the last linear layer.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].
    """
    check_sizes("cnn", depth=depth, width=width, num_outputs=num_outputs)
    channels = check_image("cnn", input_shape)
    side = min(input_shape[1:])
    layers = nn.Sequential()
    for _ in range(depth - 1):
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
        block = make_block(conv, norm, norm_position, activation)
        side = add_pooling(block, side)
        layers.append(block)
        channels = width
    model = make_classifier("layers", layers, channels, num_outputs, last_bn=last_bn, bias=bias)
    initialise(model, init, init_scale)
    return model
