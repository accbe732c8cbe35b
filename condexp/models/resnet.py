"""Residual networks for small images: He et al. 2016, *Deep residual learning*, §4.2."""

from collections.abc import Sequence
from enum import StrEnum

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import InputError, choose
from condexp.models.checks import check_image, check_sizes
from condexp.models.init import Init, initialise
from condexp.models.norm import Norm, make_norm

STEM_CHANNELS = 16


class Shortcut(StrEnum):
    """The shortcuts of He et al. 2016, §4.1.

    A: without parameters, new channels are zero. B: projection where the shape changes. C: always
    projection.
    """

    A = "A"
    B = "B"
    C = "C"


class ZeroPadShortcut(nn.Module):
    """Shortcut A where the shape changes: subsample the positions, append channels of zeros.

    Args:
        new_channels: Number of channels to append.
        stride: Every which row and column stays.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C + new_channels, ⌈H/stride⌉, ⌈W/stride⌉].

        Args:
            inputs: Activations [N, C, H, W].

        Returns:
            The padded activations.
        """
        kept = inputs[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(
    shortcut: Shortcut, c_in: int, c_out: int, stride: int, norm: Norm | str
) -> nn.Module:
    """Build the shortcut around one block.

    Args:
        shortcut: Which type.
        c_in: Channels before the block.
        c_out: Channels after the block.
        stride: Stride of the block.
        norm: Normalisation after a projection.

    Returns:
        A module from [N, c_in, H, W] to [N, c_out, ⌈H/stride⌉, ⌈W/stride⌉].
    """
    same = c_in == c_out and stride == 1
    if shortcut is Shortcut.C or (shortcut is Shortcut.B and not same):
        projection = nn.Sequential()
        projection.add_module("conv", nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False))
        projection.add_module("norm", make_norm(norm, c_out, spatial=True))
        return projection
    return nn.Identity() if same else ZeroPadShortcut(c_out - c_in, stride)


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
    """A stem convolution, three stages of basic blocks, the mean over positions, a linear layer.

    Args:
        c_in: Channels of the image.
        num_outputs: Outputs of the last layer.
        num_blocks: Blocks a stage, n of depth = 6n + 2.
        shortcut: Type of shortcut.
        widen_factor: Factor on the stages' 16, 32, 64 channels.
        norm: Normalisation after each convolution.
        last_bn: Whether a BatchNorm1d stands before the last linear layer.
    """

    def __init__(
        self,
        c_in: int,
        num_outputs: int,
        num_blocks: int,
        shortcut: Shortcut,
        widen_factor: int,
        norm: Norm | str,
        last_bn: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, STEM_CHANNELS, 3, padding=1, bias=False)
        self.norm = make_norm(norm, STEM_CHANNELS, spatial=True)
        channels = STEM_CHANNELS
        self.stages = nn.Sequential()
        for stage in range(3):
            width = STEM_CHANNELS * widen_factor * 2**stage
            blocks = nn.Sequential()
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, shortcut, norm))
                channels = width
            self.stages.append(blocks)
        self.last_bn = nn.BatchNorm1d(channels) if last_bn else nn.Identity()
        self.fc = nn.Linear(channels, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images to outputs.

        Args:
            inputs: Images [N, C, H, W].

        Returns:
            Outputs [N, num_outputs].
        """
        hidden = F.relu(self.norm(self.conv(inputs)), inplace=True)
        # A plain mean: the adaptive pooling's backward pass is not deterministic on CUDA.
        features = self.stages(hidden).mean((2, 3))
        outputs: Tensor = self.fc(self.last_bn(features))
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
    """Build a residual network for small images, He et al. 2016, §4.2.

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

    Raises:
        InputError: If the depth is not 6n + 2, or the input is no image from 8 px on.
    """
    if depth < 8 or depth % 6 != 2:
        below = max(8, depth - (depth - 2) % 6)
        nearest = f"{below} and {below + 6}" if depth > 8 else f"{below}"
        raise InputError(
            f"resnet: depth {depth} is not 6n + 2 (8, 14, 20, …); nearest valid: {nearest}."
        )
    c_in = check_image("resnet", input_shape)
    check_sizes("resnet", widen_factor=widen_factor, num_outputs=num_outputs)
    kind = Shortcut(choose("shortcut", shortcut, [str(each) for each in Shortcut]))
    model = ResNet(c_in, num_outputs, (depth - 2) // 6, kind, widen_factor, norm, last_bn)
    initialise(model, init, init_scale)
    return model
