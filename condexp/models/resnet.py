"""Residual networks for small images: He et al. 2016a, *Deep residual learning*, §4.2."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import choose
from condexp.models.checks import check_image, check_sizes
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


def build_resnet(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    depth: int,
    shortcut: Shortcut | str = Shortcut.A,
    widen_factor: int = 1,
    norm: Norm | str = Norm.BATCH,
    last_bn: bool = False,
    init: Init | str = Init.HE,
    init_scale: float = 1.0,
) -> nn.Module:
    """Build a residual network for small images, He et al. 2016a, §4.2.

    Layers are named ``conv``, ``stages.0.0.conv1``, ``stages.0.0.conv2``, …, ``fc``; a projection
    is ``stages.1.0.shortcut.conv``. Convolutions have no bias.

    Args:
        input_shape: Shape of one image, (C, H, W), from 8 px on.
        num_outputs: Outputs of the last layer.
        depth: Number of layers with weights, 6n + 2.
        shortcut: Type of shortcut, A | B | C.
        widen_factor: Factor on the stages' channels (Zagoruyko & Komodakis 2016).
        norm: Normalisation after each convolution.
        last_bn: Whether a BatchNorm1d stands before the last linear layer.
        init: How the weights are drawn.
        init_scale: Factor on the drawn weights.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].
    """
    blocks, widths = cifar_blocks("resnet", depth), cifar_widths(widen_factor)
    c_in = check_image("resnet", input_shape)
    check_sizes("resnet", widen_factor=widen_factor, num_outputs=num_outputs)
    kind = Shortcut(choose("shortcut", shortcut, [str(each) for each in Shortcut]))
    stages = make_stages(
        lambda c_in, c_out, stride, _: BasicBlock(c_in, c_out, stride, kind, norm),
        STEM_CHANNELS,
        widths,
        blocks,
    )
    conv = nn.Conv2d(c_in, STEM_CHANNELS, 3, padding=1, bias=False)
    model = ResNet(conv, stages, widths[-1], num_outputs, norm=norm, last_bn=last_bn)
    initialise(model, init, init_scale)
    return model
