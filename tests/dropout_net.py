"""A small network with everything whose state a run of several processes has to keep."""

import time

from torch import Tensor, nn


def build() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 10),
    )


class Failing(nn.Module):
    """Has enough after a few batches of training, in every process."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.num_batches = build(), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_batches += self.training and len(inputs) == 5
        if self.num_batches > 4:
            raise ValueError("enough")
        outputs: Tensor = self.net(inputs)
        return outputs


class Idle(nn.Module):
    """Has a layer that its outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.idle = build(), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs)
        return outputs


def plain_norm() -> nn.Module:
    norm = nn.BatchNorm1d(8, affine=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.Linear(8, 10))


class Paced(nn.Module):
    """Takes half a second for a batch of training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            time.sleep(0.5)
        outputs: Tensor = self.net(inputs)
        return outputs
