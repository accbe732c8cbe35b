"""The networks that are timed, each with its training step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.loop import BATCH, LR, MOMENTUM
from tests.from_conf import build, load

LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Network:
    """A network, and what a float32 snapshot of it may cost.

    Attributes:
        name: For the table.
        build: Makes it.
        batch: Samples of a batch of images.
        target: Largest cost of a snapshot beyond the step it rides on, in steps; None: only told.
        shape: Shape of an image.
        decades: Decades over which the scales of the pixels go, the same in all images.
        epochs: Epochs of training on handwritten digits, a batch of which is measured then.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int = BATCH
    target: float | None = None
    shape: tuple[int, int, int] = (3, 32, 32)
    decades: float = 0.0
    epochs: int = 0


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


def plain_mlp(depth: int, width: int, *, layer_norm: bool = False) -> nn.Module:
    """Return a multilayer perceptron as a program has it: torch's own initial weights.

    Args:
        depth: Linear layers.
        width: Hidden units of each.
        layer_norm: Whether each hidden layer is normalised.

    Returns:
        The network, on 28×28 grey images.
    """
    sizes = [28 * 28, *[width] * (depth - 1)]
    layers: list[nn.Module] = [nn.Flatten()]
    for d_in, d_out in pairwise(sizes):
        layers += [nn.Linear(d_in, d_out), *[nn.LayerNorm(d_out)] * layer_norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def of_digits(name: str, **changes: object) -> Callable[[], nn.Module]:
    """Return a function that makes a model of ``conf/model`` for handwritten digits, 8×8.

    Args:
        name: The model.
        **changes: Its keys that are not as there.

    Returns:
        The function.
    """
    return partial(build, name, (1, 8, 8), 10, **changes)


NETWORKS = (
    resnet(20, target=1.6),
    resnet(56, target=1.8),
    vgg(target=2.9),
    mlp(20, 256, target=2.3),
    mlp(6, 1024, target=0.5),
    resnet(110),
)
_GREY = (1, 28, 28)
AS_PEOPLE_HAVE_THEM = (
    Network("MLP 20x256, torch's init", partial(plain_mlp, 20, 256), shape=_GREY),
    Network("MLP 20x256, LayerNorm", partial(plain_mlp, 20, 256, layer_norm=True), shape=_GREY),
    Network("MLP 6x1024, torch's init", partial(plain_mlp, 6, 1024), shape=_GREY),
    Network("MLP 6x256, 6 decades of scales", partial(plain_mlp, 6, 256), shape=_GREY, decades=6.0),
    Network("MLP 6x64 on digits, 5 epochs", of_digits("mlp"), epochs=5),
    Network("ResNet-20 on digits, 5 epochs", of_digits("resnet", depth=20), epochs=5),
)
"""Networks whose conditioning does not help: not initialised for depth, or trained."""


class Training:
    """A network on random images, or on digits, trained a step at a time.

    Args:
        network: Which one.
    """

    def __init__(self, network: Network) -> None:
        torch.manual_seed(0)
        self.model = network.build()
        self.inputs = torch.randn(network.batch, *network.shape)
        if network.decades:
            self.inputs *= 10 ** (-network.decades * torch.rand(network.shape))
        self.targets = torch.randint(0, 10, (network.batch,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        if network.epochs:
            self._train_on_digits(network.epochs)

    def _train_on_digits(self, epochs: int) -> None:
        digits, batch = load("digits"), len(self.inputs)
        images, labels = digits.train.inputs.float(), digits.train.targets
        images = (images - digits.mean[0]) / digits.std[0]
        quickly = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=MOMENTUM)
        slowly, self.optimizer = self.optimizer, quickly
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(images)), batch)[: len(images) // batch]:
                self.inputs, self.targets = images[chosen], labels[chosen]
                self.step()
        self.optimizer = slowly

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
