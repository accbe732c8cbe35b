"""Residual networks for small images: He et al. 2016a, *Deep residual learning*, §4.2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import one_of, within
from condexp.models.checks import check_image
from condexp.models.choices import Init, Norm, Shortcut
from condexp.models.init import initialise
from condexp.models.norm import make_norm
from condexp.models.residual import (
    STEM_CHANNELS,
    cifar_blocks,
    cifar_widths,
    make_shortcut,
    make_stages,
)
from condexp.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/resnet.yaml``, and of ``preresnet.yaml``."""

    depth: int = within(8, 10_000)
    shortcut: str = one_of(Shortcut)
    widen_factor: int = within(1)
    norm: str = one_of(Norm)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: ``relu(norm2(conv2(relu(norm1(conv1(x))))) + s(x))``.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        stride: Stride of the first convolution.
        shortcut: Type of shortcut.
        norm: Normalisation after each convolution.
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int, shortcut: Shortcut, norm: Norm | str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, c_out, spatial=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, c_out, spatial=True)
        self.shortcut = make_shortcut(shortcut, c_in, c_out, stride, norm)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block.

        Args:
            inputs: Activations [N, c_in, H, W].

        Returns:
            Activations [N, c_out, ⌈H/stride⌉, ⌈W/stride⌉].
        """
        hidden = F.relu(self.norm1(self.conv1(inputs)), inplace=True)
        hidden = self.norm2(self.conv2(hidden))
        hidden += self.shortcut(inputs)
        return F.relu(hidden, inplace=True)


class ResNet(nn.Module):
    """A stem convolution, stages of blocks, the mean over positions, a linear layer.

    Args:
        conv: The stem.
        stages: The stages.
        channels: Channels of the last stage's output.
        num_outputs: Outputs of the last layer.
        norm: Normalisation after the stem.
        last_bn: Whether a BatchNorm1d stands before the last linear layer.
        pool: Pooling between stem and stages.
        dropout: Share of the last linear layer's inputs that is dropped in training.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        stages: nn.Sequential,
        channels: int,
        num_outputs: int,
        *,
        norm: Norm | str,
        last_bn: bool,
        pool: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = make_norm(norm, conv.out_channels, spatial=True)
        self.pool = pool or nn.Identity()
        self.stages = stages
        self.last_bn = nn.BatchNorm1d(channels) if last_bn else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(channels, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images to outputs.

        Args:
            inputs: Images [N, C, H, W].

        Returns:
            Outputs [N, num_outputs].
        """
        hidden = self.pool(F.relu(self.norm(self.conv(inputs)), inplace=True))
        # A plain mean: the adaptive pooling's backward pass is not deterministic on CUDA.
        features = self.stages(hidden).mean((2, 3))
        outputs: Tensor = self.fc(self.dropout(self.last_bn(features)))
        return outputs


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a residual network for small images, He et al. 2016a, §4.2.

    Layers are named ``conv``, ``stages.0.0.conv1``, ``stages.0.0.conv2``, …, ``fc``; a projection
    is ``stages.1.0.shortcut.conv``. Convolutions have no bias.

    Args:
        spec: The keys.
        input_shape: Shape of one image, (C, H, W), from 8 px on.
        num_outputs: Outputs of the last layer.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].
    """
    blocks, widths = cifar_blocks(spec.name, spec.depth), cifar_widths(spec.widen_factor)
    c_in = check_image(spec.name, input_shape, num_outputs)
    shortcut = Shortcut(spec.shortcut)
    stages = make_stages(
        lambda c_in, c_out, stride, _: BasicBlock(c_in, c_out, stride, shortcut, spec.norm),
        STEM_CHANNELS,
        widths,
        blocks,
    )
    conv = nn.Conv2d(c_in, STEM_CHANNELS, 3, padding=1, bias=False)
    model = ResNet(conv, stages, widths[-1], num_outputs, norm=spec.norm, last_bn=spec.last_bn)
    initialise(model, spec.init, spec.init_scale)
    return model
