"""The parts that residual networks share: shortcuts, stages of blocks, sizes for small images.

He et al. 2016a, *Deep residual learning*, §4.1 and 4.2.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.models.choices import Norm, Shortcut
from condexp.models.norm import make_norm

STEM_CHANNELS = 16
BlockMaker = Callable[[int, int, int, bool], nn.Module]


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


def make_stages(
    block: BlockMaker, c_in: int, widths: Sequence[int], num_blocks: Sequence[int]
) -> nn.Sequential:
    """Build stages of blocks; each stage but the first starts with a stride of 2.

    Args:
        block: Makes a block of ``c_in``, ``c_out``, its stride, and whether it is a stage's first.
        c_in: Channels before the first stage.
        widths: Channels of each stage's output.
        num_blocks: Blocks of each stage.

    Returns:
        The stages, block b of stage s named ``s.b``.
    """
    stages = nn.Sequential()
    for stage, (width, number) in enumerate(zip(widths, num_blocks, strict=True)):
        blocks = nn.Sequential()
        for index in range(number):
            first = index == 0
            blocks.append(block(c_in, width, 2 if first and stage > 0 else 1, first))
            c_in = width
        stages.append(blocks)
    return stages


def cifar_widths(widen_factor: int) -> list[int]:
    """Return the channels of the three stages of a network for small images.

    Args:
        widen_factor: Factor on 16, 32, 64 (Zagoruyko & Komodakis 2016).

    Returns:
        The channels.
    """
    return [STEM_CHANNELS * widen_factor * 2**stage for stage in range(3)]


def cifar_blocks(model: str, depth: int) -> list[int]:
    """Return the blocks of the three stages of a network of depth 6n + 2.

    Args:
        model: The model's name, for the message.
        depth: Number of layers with weights, projections not counted; 8 at least.

    Returns:
        n for each stage.

    Raises:
        InputError: If the depth is not 6n + 2.
    """
    below = depth - (depth - 2) % 6
    if below != depth:
        raise InputError(
            f"{model}: depth {depth} is not 6n + 2 (8, 14, 20, …); nearest valid: {below} and "
            f"{below + 6}."
        )
    return [(depth - 2) // 6] * 3
