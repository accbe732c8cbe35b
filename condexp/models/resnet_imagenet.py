"""Residual networks for ImageNet: He et al. 2016a, *Deep residual learning*, table 1.

A bottleneck's stride is that of its 3×3 convolution, as in torchvision and in fb.resnet.torch
("v1.5"), not of its first 1×1 convolution. Shortcuts are of type B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import one_of, within
from condexp.models.checks import check_image
from condexp.models.choices import Init, Norm, Shortcut
from condexp.models.init import initialise
from condexp.models.norm import make_norm
from condexp.models.residual import make_shortcut, make_stages
from condexp.models.resnet import BasicBlock, ResNet
from condexp.models.spec import ModelSpec

WIDTH = 64
EXPANSION = 4
SHALLOWEST_BOTTLENECK = 50
NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/resnet_imagenet.yaml``."""

    depth: int = one_of(NUM_BLOCKS)
    norm: str = one_of(Norm)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool
    dropout: float = within(0, 1, open_high=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the first two have a quarter of the channels.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        stride: Stride of the 3×3 convolution.
        shortcut: Type of shortcut.
        norm: Normalisation after each convolution.
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int, shortcut: Shortcut, norm: Norm | str
    ) -> None:
        super().__init__()
        width = c_out // EXPANSION
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.norm1 = make_norm(norm, width, spatial=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = make_norm(norm, width, spatial=True)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.norm3 = make_norm(norm, c_out, spatial=True)
        self.shortcut = make_shortcut(shortcut, c_in, c_out, stride, norm)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block.

        Args:
            inputs: Activations [N, c_in, H, W].

        Returns:
            Activations [N, c_out, ⌈H/stride⌉, ⌈W/stride⌉].
        """
        hidden = F.relu(self.norm1(self.conv1(inputs)), inplace=True)
        hidden = F.relu(self.norm2(self.conv2(hidden)), inplace=True)
        hidden = self.norm3(self.conv3(hidden))
        hidden += self.shortcut(inputs)
        return F.relu(hidden, inplace=True)


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a residual network for ImageNet, He et al. 2016a, table 1.

    Depths 18 and 34 have basic blocks, 50, 101 and 152 bottlenecks. Layers are named as in
    :func:`condexp.models.resnet.build`. Convolutions have no bias. Small images shrink to 1×1 px in
    the last stages.

    Args:
        spec: The keys.
        input_shape: Shape of one image, (C, H, W), from 8 px on.
        num_outputs: Outputs of the last layer.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].
    """
    c_in = check_image(spec.name, input_shape, num_outputs)
    bottlenecks = spec.depth >= SHALLOWEST_BOTTLENECK
    block = Bottleneck if bottlenecks else BasicBlock
    widths = [WIDTH * (EXPANSION if bottlenecks else 1) * 2**stage for stage in range(4)]
    stages = make_stages(
        lambda c_in, c_out, stride, _: block(c_in, c_out, stride, Shortcut.B, spec.norm),
        WIDTH,
        widths,
        NUM_BLOCKS[spec.depth],
    )
    model = ResNet(
        nn.Conv2d(c_in, WIDTH, 7, stride=2, padding=3, bias=False),
        stages,
        widths[-1],
        num_outputs,
        norm=spec.norm,
        last_bn=spec.last_bn,
        pool=nn.MaxPool2d(3, stride=2, padding=1),
        dropout=spec.dropout,
    )
    initialise(model, spec.init, spec.init_scale)
    return model
