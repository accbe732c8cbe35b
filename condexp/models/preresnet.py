"""Pre-activation residual networks for small images: He et al. 2016b, *Identity mappings*, §3–4.

As in the released Torch code (fb.resnet.torch, and the paper's after it): the stem has no
normalisation; a stage's first block takes its shortcut from the activated input, which both its
branches share, the others from the raw one; a projection has no normalisation.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.models import resnet
from condexp.models.checks import check_image
from condexp.models.choices import Norm, Shortcut
from condexp.models.init import initialise
from condexp.models.norm import make_norm
from condexp.models.residual import (
    STEM_CHANNELS,
    cifar_blocks,
    cifar_widths,
    make_shortcut,
    make_stages,
)

Spec = resnet.Spec
"""The same keys; ``last_bn`` is another layer."""


class PreActivationBlock(nn.Module):
    """``conv2(relu(norm2(conv1(h)))) + s(x)`` of ``h = relu(norm1(x))``; ``s(h)`` where shared.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        stride: Stride of the first convolution.
        shared: Whether the shortcut too starts from the activated input.
        shortcut: Type of shortcut.
        norm: Normalisation before each activation.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int,
        shared: bool,
        shortcut: Shortcut,
        norm: Norm | str,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.norm1 = make_norm(norm, c_in, spatial=True)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = make_norm(norm, c_out, spatial=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = make_shortcut(shortcut, c_in, c_out, stride, Norm.NONE)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block.

        Args:
            inputs: Activations [N, c_in, H, W].

        Returns:
            Activations [N, c_out, ⌈H/stride⌉, ⌈W/stride⌉].
        """
        # Not in place: without a normalisation this is the shortcut's input.
        active = F.relu(self.norm1(inputs))
        hidden = F.relu(self.norm2(self.conv1(active)), inplace=True)
        outputs: Tensor = self.conv2(hidden)
        outputs += self.shortcut(active if self.shared else inputs)
        return outputs


class PreResNet(nn.Module):
    """A stem convolution, stages of blocks, a final BatchNorm2d and rectifier, mean, linear layer.

    Args:
        conv: The stem.
        stages: The stages.
        channels: Channels of the last stage's output.
        num_outputs: Outputs of the last layer.
        last_bn: Whether there is the final BatchNorm2d; the rectifier stays.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        stages: nn.Sequential,
        channels: int,
        num_outputs: int,
        *,
        last_bn: bool,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.stages = stages
        self.last_bn = nn.BatchNorm2d(channels) if last_bn else nn.Identity()
        self.fc = nn.Linear(channels, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images to outputs.

        Args:
            inputs: Images [N, C, H, W].

        Returns:
            Outputs [N, num_outputs].
        """
        hidden = self.last_bn(self.stages(self.conv(inputs)))
        outputs: Tensor = self.fc(F.relu(hidden, inplace=True).mean((2, 3)))
        return outputs


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build a pre-activation residual network for small images, He et al. 2016b.

    Layers are named as in :func:`condexp.models.resnet.build`. Convolutions have no bias. The last
    activation has a BatchNorm2d before it, whatever ``norm`` is; with ``last_bn=false``, that is
    ``PreResNet_v1`` of the paper's code, it has nothing.

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
        lambda c_in, c_out, stride, first: PreActivationBlock(
            c_in, c_out, stride, first, shortcut, spec.norm
        ),
        STEM_CHANNELS,
        widths,
        blocks,
    )
    conv = nn.Conv2d(c_in, STEM_CHANNELS, 3, padding=1, bias=False)
    model = PreResNet(conv, stages, widths[-1], num_outputs, last_bn=spec.last_bn)
    initialise(model, spec.init, spec.init_scale)
    return model
