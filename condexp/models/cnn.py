"""Small plain convolutional networks, whose layers' exact Fisher blocks can be had (claim 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from condexp.models import mlp
from condexp.models.block import add_pooling, make_block, make_classifier
from condexp.models.checks import check_image
from condexp.models.init import initialise


@dataclass(frozen=True, kw_only=True)
class Spec(mlp.Spec):
    """The keys of ``conf/model/cnn.yaml``: an MLP's, for convolutions, and ``pool``."""

    pool: bool


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a plain network of 3×3 convolutions of stride 1, padded by 1.

    Convolutions are ``layers.0.conv``, ``layers.1.conv``, … with their ``norm``, ``activation``
    and, with ``pool`` and as long as height and width are 2 px at least, 2×2 max pooling; then the
    mean over positions, ``last_bn`` if there is one, and ``fc``. The depth counts ``fc``, as an
    MLP's does.

    Args:
        spec: The keys.
        input_shape: Shape of one image, (C, H, W), from 8 px on.
        num_outputs: Outputs of the last layer.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].
    """
    channels = check_image(spec.name, input_shape, num_outputs)
    side = min(input_shape[1:])
    layers = nn.Sequential()
    for _ in range(spec.depth - 1):
        conv = nn.Conv2d(channels, spec.width, 3, padding=1, bias=spec.bias)
        block = make_block(conv, spec.norm, spec.norm_position, spec.activation)
        if spec.pool:
            side = add_pooling(block, side)
        layers.append(block)
        channels = spec.width
    model = make_classifier(
        "layers", layers, channels, num_outputs, last_bn=spec.last_bn, bias=spec.bias
    )
    initialise(model, spec.init, spec.init_scale)
    return model
