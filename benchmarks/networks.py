"""The networks that are timed, each with its training step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.loop import BATCH, LR, MOMENTUM
from tests.from_conf import build

LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Network:
    """A network, and what a float32 snapshot of it may cost.

    Attributes:
        name: For the table.
        build: Makes it.
        batch: Samples of a batch of 32×32 colour images.
        target: Largest cost of a snapshot beyond the step it rides on, in steps; None: only told.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int = BATCH
    target: float | None = None


def resnet(depth: int, *, batch: int = BATCH, target: float | None = None) -> Network:
    """Return a ResNet for CIFAR.

    Args:
        depth: 6n + 2.
        batch: Samples of a batch.
        target: See :class:`Network`.

    Returns:
        The network.
    """
    make = partial(build, "resnet", (3, 32, 32), 10, depth=depth)
    return Network(f"ResNet-{depth}", make, batch, target)


def mlp(depth: int, width: int, *, batch: int = BATCH, target: float | None = None) -> Network:
    """Return a rectified multilayer perceptron on 3072 inputs.

    Args:
        depth: Linear layers.
        width: Hidden units of each.
        batch: Samples of a batch.
        target: See :class:`Network`.

    Returns:
        The network.
    """
    make = partial(build, "mlp", (3, 32, 32), 10, depth=depth, width=width, norm="none")
    return Network(f"MLP {depth}x{width}", make, batch, target)


def vgg(*, batch: int = BATCH, target: float | None = None) -> Network:
    """Return VGG-16 with BatchNorm.

    Args:
        batch: Samples of a batch.
        target: See :class:`Network`.

    Returns:
        The network.
    """
    make = partial(build, "vgg", (3, 32, 32), 10, depth=16, norm="batch")
    return Network("VGG-16-BN", make, batch, target)


NETWORKS = (
    resnet(20, target=1.6),
    resnet(56, target=1.8),
    vgg(target=2.9),
    mlp(20, 256, target=2.3),
    mlp(6, 1024, target=0.5),
    resnet(110),
)


class Training:
    """A network on random images, trained a step at a time.

    Args:
        network: Which one.
    """

    def __init__(self, network: Network) -> None:
        torch.manual_seed(0)
        self.model = network.build()
        self.inputs = torch.randn(network.batch, 3, 32, 32)
        self.targets = torch.randint(0, 10, (network.batch,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)

    def forward_backward(self) -> Tensor:
        """Compute the gradients of one step.

        Returns:
            The loss.
        """
        self.optimizer.zero_grad()
        loss: Tensor = LOSS(self.model(self.inputs), self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def update(self, loss: Tensor) -> None:
        """Finish a step.

        Args:
            loss: Its loss.
        """
        self.optimizer.step()
        loss.item()

    def step(self) -> None:
        """Train one step."""
        self.update(self.forward_backward())
