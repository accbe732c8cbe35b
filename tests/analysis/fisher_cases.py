"""Small networks of every kind of weight that an exact Fisher block is measured of."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import cases

Case = tuple[nn.Module, Tensor]


class Sequences(nn.Module):
    """Linear layers on [N, T, d]: T below, and above d_in."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 2), nn.Linear(2, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.gelu(self.narrow(torch.tanh(self.wide(x)))).mean(1))
        return out


class Convolutions(nn.Module):
    """Strides, groups, dilation, uneven padding of every kind, 1×1; a convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=(1, 2))
        self.grouped = nn.Conv2d(4, 6, (2, 3), groups=2, padding="same", padding_mode="reflect")
        self.wide = nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False)
        self.twice = nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.wide(F.relu(self.grouped(F.relu_(self.stem(x))))))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        out: Tensor = self.fc(self.depthwise(x).mean((2, 3)))
        return out


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (cases.mlp(), cases.normal(6, 4)),
    "sequences": lambda: (cases.randomised(Sequences()), cases.normal(3, 4, 6)),
    "convolutions": lambda: (cases.randomised(Convolutions()), cases.normal(3, 2, 7, 9)),
    "reused": lambda: (cases.reused(), cases.normal(5, 4)),
    "resnet in eval mode": lambda: (cases.resnet().eval(), cases.normal(3, 2, 8, 8)),
    "more rows than weights": lambda: (cases.mlp((2, 3, 3)), cases.normal(40, 2)),
}


def targets_of(loss_fn: nn.Module, num_samples: int) -> Tensor:
    if isinstance(loss_fn, nn.MSELoss):
        return cases.normal(num_samples, 3, seed=4)
    return cases.labels(num_samples, 3)
