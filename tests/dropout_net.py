"""A small network with everything whose state a run of several processes has to keep."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from torch import Tensor, nn

from tests.waiting import wait_until


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


class Held(nn.Module):
    """Says in the folder ``HELD`` that its process trains, and waits until one got a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build()
        self.folder = os.environ.get("HELD")

    def forward(self, inputs: Tensor) -> Tensor:
        if self.folder and self.training and len(inputs) == 5:
            folder, self.folder = Path(self.folder), None
            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, letting_go(folder, signal.getsignal(number)))
            (folder / str(os.getpid())).touch()
            wait_until((folder / "signal").exists)
        outputs: Tensor = self.net(inputs)
        return outputs


def letting_go(folder: Path, before: object) -> Callable[[int, FrameType | None], None]:
    """A handler that tells all who wait, after what was done at a signal before."""

    def handle(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        (folder / "signal").touch()

    return handle
