"""torchvision's VisionTransformer, small, with a choice of normalisation."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from condexp.errors import InputError
from condexp.models.vit import TokenBatchNorm
from tests.from_conf import build


def vit(shape: tuple[int, ...] = (1, 8, 8), outputs: int = 3, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    given: dict[str, Any] = {"depth": 2, "width": 8, "heads": 2, "patch_size": 4}
    return build("vit", shape, outputs, **{**given, **changes})


def test_it_is_torchvisions_own() -> None:
    ours = vit((3, 8, 8))
    torch.manual_seed(0)
    theirs = VisionTransformer(
        8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=32, num_classes=3,
        norm_layer=nn.LayerNorm,
    )  # fmt: skip
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28])
def test_forward_and_backward(norm: str, channels: int, size: int) -> None:
    model = vit((channels, size, size), norm=norm)
    nn.init.ones_(model.get_parameter("heads.head.weight"))
    generator = torch.Generator().manual_seed(1)
    outputs = model(torch.randn(4, channels, size, size, generator=generator))
    assert outputs.shape == (4, 3)
    (outputs.square() * torch.arange(3)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    kinds = {type(module) for module in model.modules()}
    assert (nn.LayerNorm in kinds, TokenBatchNorm in kinds) == (norm == "layer", norm == "batch")


def test_tokens_are_normalised_over_samples_and_positions() -> None:
    tokens = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = TokenBatchNorm(2).double()
    rows = tokens.reshape(15, 2)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(norm(tokens).reshape(15, 2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, r"patch_size=3 does not divide images of 8x8 px: .* 1, 2, 4, 8\."),
        ({"heads": 3}, "model.heads=3 does not divide model.width=8"),
        ({"norm": "group"}, "unknown model.norm 'group': allowed are none, batch, layer"),
        ({"shape": (1, 8, 12)}, "8x12 px: take square images"),
        ({"shape": (5,)}, "vit needs images"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        vit(**changes)
