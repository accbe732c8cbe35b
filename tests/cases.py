"""Tiny networks and batches for the tests: float64, a few units, every awkward feature."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def labels(num_samples: int, num_classes: int, *more: int, seed: int = 1) -> Tensor:
    return torch.randint(num_classes, (num_samples, *more), generator=seeded(seed))


def randomised(model: nn.Module, seed: int = 2) -> nn.Module:
    """The model in float64 with seeded weights of a sensible size, no statistic at its default."""
    model = model.double()
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / fan_in**0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.add_(1)
                for buffer in (module.running_mean, module.running_var):
                    assert buffer is not None
                    noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
                    buffer.add_(0.1 * noise)
    return model


def mlp(
    sizes: Sequence[int] = (4, 5, 6, 3), *, bias: bool = True, batch_norm: bool = False
) -> nn.Sequential:
    """Linear layers ``0, 2, …`` (with BN ``0, 3, …``) with in-place ReLUs between them."""
    modules: list[nn.Module] = []
    for d_in, d_out in pairwise(sizes):
        modules.append(nn.Linear(d_in, d_out, bias=bias))
        if batch_norm:
            modules.append(nn.BatchNorm1d(d_out))
        modules.append(nn.ReLU(inplace=True))
    model = randomised(nn.Sequential(*modules[: -2 if batch_norm else -1]))
    assert isinstance(model, nn.Sequential)
    return model


def vgg(num_classes: int = 3, *, batch_norm: bool = True, bias: bool = True) -> nn.Module:
    """Four 3×3 convolutions with max pooling on images of 8×8, two linear layers."""
    modules: list[nn.Module] = []
    channels = 2
    for width in (4, 4, "pool", 6, 6, "pool"):
        if isinstance(width, str):
            modules.append(nn.MaxPool2d(2))
            continue
        modules.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
        if batch_norm:
            modules.append(nn.BatchNorm2d(width))
        modules.append(nn.ReLU(inplace=True))
        channels = width
    head = [nn.Flatten(), nn.Linear(24, 8, bias=bias), nn.ReLU(), nn.Linear(8, num_classes)]
    return randomised(nn.Sequential(*modules, *head))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, in-place activations, an in-place sum with a zero-padded shortcut."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.more = stride, d_out - d_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        skip = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        y += skip
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """He et al. 2016's CIFAR ResNet of depth 6·n + 2 with shortcut A, of any width."""

    def __init__(self, num_blocks: int = 1, width: int = 4, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn(self.conv(x)))
        out: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return out


def resnet(num_blocks: int = 1, width: int = 4) -> nn.Module:
    return randomised(ResNet(num_blocks, width))


class Reused(nn.Module):
    """One linear layer called three times, on vectors and on sequences, between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.shared = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for _ in range(3):
            h = torch.tanh(self.shared(h))
        out: Tensor = self.last(h)
        return out


def reused() -> nn.Module:
    return randomised(Reused())


class Attention(nn.Module):
    """Weights of many kinds: an embedding, attention's, a bare one, a parametrised one, Conv1d."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.zeros(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 4, 1)
        self.wrapped = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4, bias=False))
        self.unused = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        x = self.wrapped(self.conv(x.mT).mT)
        out: Tensor = self.fc(x).mean(1)
        return out


def conv_net(conv: nn.Conv2d, height: int, width: int, num_classes: int = 3) -> nn.Sequential:
    """One convolution, an in-place ReLU and a linear layer: modules ``0`` and ``3``."""
    size = conv(torch.zeros(1, conv.in_channels, height, width)).numel()
    model = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(size, num_classes))
    assert isinstance(randomised(model), nn.Sequential)
    return model
