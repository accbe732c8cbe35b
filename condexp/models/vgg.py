"""VGG networks for small and large images: Simonyan & Zisserman 2015, table 1 (A, B, D and E).

The convolutions are the published ones, with their biases, also where a normalisation follows (as
torchvision's ``vgg16_bn`` has them; behind batch statistics a bias is without effect): 14,714,688
parameters for depth 16 and three channels. The three linear layers of the paper are replaced by
one on the mean over the positions that are left, which is the usual head for CIFAR.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from condexp.errors import one_of, within
from condexp.models.block import add_pooling, make_block, make_classifier
from condexp.models.checks import check_image
from condexp.models.choices import Init, Norm, NormPosition
from condexp.models.init import initialise
from condexp.models.spec import ModelSpec

WIDTHS = (64, 128, 256, 512, 512)
# Convolutions of each stage; the published depth counts three linear layers.
NUM_CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/vgg.yaml``."""

    depth: int = one_of(NUM_CONVOLUTIONS)
    norm: str = one_of(Norm)
    norm_position: str = one_of(NormPosition)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool


def make_stage(
    c_in: int, c_out: int, number: int, norm: Norm | str, norm_position: NormPosition | str
) -> nn.Sequential:
    """Build the convolutions of one stage, without its pooling.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        number: Number of convolutions.
        norm: Normalisation after each of them.
        norm_position: Before or after the activation.

    Returns:
        The stage.
    """
    stage = nn.Sequential()
    for _ in range(number):
        conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        stage.append(make_block(conv, norm, norm_position))
        c_in = c_out
    return stage


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a VGG network with one linear layer, Simonyan & Zisserman 2015, table 1.

    Layers are named ``stages.0.0.conv``, …, ``fc``. A stage ends with 2×2 max pooling as long as
    height and width are 2 px at least: images of 32 px end at 1×1, smaller ones are pooled less.

    Args:
        spec: The keys.
        input_shape: Shape of one image, (C, H, W), from 8 px on.
        num_outputs: Outputs of the last layer.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].
    """
    channels = check_image(spec.name, input_shape, num_outputs)
    side = min(input_shape[1:])
    stages = nn.Sequential()
    for width, number in zip(WIDTHS, NUM_CONVOLUTIONS[spec.depth], strict=True):
        stage = make_stage(channels, width, number, spec.norm, spec.norm_position)
        side = add_pooling(stage, side)
        stages.append(stage)
        channels = width
    model = make_classifier("stages", stages, channels, num_outputs, last_bn=spec.last_bn)
    initialise(model, spec.init, spec.init_scale)
    return model
