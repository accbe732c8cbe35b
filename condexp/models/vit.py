"""Small vision transformers: torchvision's class, with LayerNorm, BatchNorm or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from condexp.errors import InputError, one_of, within
from condexp.models.checks import check_image
from condexp.models.choices import Norm
from condexp.models.spec import ModelSpec
from condexp.models.user_code import load_module

NORMS = (Norm.NONE, Norm.BATCH, Norm.LAYER)
MLP_RATIO = 4  # Dosovitskiy et al. 2021, table 1


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/vit.yaml``."""

    patch_size: int = within(1)
    depth: int = within(1, 1000)
    width: int = within(1)
    heads: int = within(1)
    norm: str = one_of(NORMS)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm of tokens: each feature's statistics are over samples and positions."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise.

        Args:
            tokens: [N, T, d].

        Returns:
            [N, T, d].
        """
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build torchvision's VisionTransformer (Dosovitskiy et al. 2021) with its initial weights.

    Its last layer ``heads.head`` starts from 0, so that before the first update no gradient reaches
    any other. ``norm`` takes the place of every LayerNorm.

    Args:
        spec: The keys.
        input_shape: Shape of one image, (C, H, W), square.
        num_outputs: Classes.

    Returns:
        The model, images [N, C, H, W] to [N, num_outputs].

    Raises:
        InputError: If the images are not square, ``patch_size`` does not divide them, or ``heads``
            does not divide ``width``.
    """
    channels = check_image(spec.name, input_shape, num_outputs)
    height, width = input_shape[1:]
    if height != width or height % spec.patch_size:
        sizes = [size for size in range(1, height + 1) if height % size == 0]
        raise InputError(
            f"model.patch_size={spec.patch_size} does not divide images of {height}x{width} px: "
            f"take square images (dataset.image_size) and one of {', '.join(map(str, sizes))}."
        )
    if spec.width % spec.heads:
        raise InputError(
            f"model.heads={spec.heads} does not divide model.width={spec.width}: each head has an "
            "equal part of it."
        )
    module: Any = load_module("torchvision.models.vision_transformer")
    kinds = {Norm.NONE: nn.Identity, Norm.BATCH: TokenBatchNorm, Norm.LAYER: nn.LayerNorm}
    model: nn.Module = module.VisionTransformer(
        image_size=height,
        patch_size=spec.patch_size,
        num_layers=spec.depth,
        num_heads=spec.heads,
        hidden_dim=spec.width,
        mlp_dim=MLP_RATIO * spec.width,
        num_classes=num_outputs,
        norm_layer=kinds[Norm(spec.norm)],
    )
    if channels != 3:  # torchvision's first layer takes three
        first = nn.Conv2d(channels, spec.width, spec.patch_size, spec.patch_size)
        fan_in = channels * spec.patch_size**2
        nn.init.trunc_normal_(first.weight, std=fan_in**-0.5)  # as torchvision draws it
        assert first.bias is not None
        nn.init.zeros_(first.bias)
        model.conv_proj = first
    return model
