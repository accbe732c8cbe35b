"""The training loop without analysis, against the loop one would write by hand."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from benchmarks.timing import Measurement, alternate
from condexp.analysis.options import AnalysisOptions
from condexp.data.dataset import Dataset, Split, Task
from condexp.data.loaders import Batches
from condexp.training.choices import Source
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord
from condexp.training.learning_rate import constant
from condexp.training.loop import Plan, Trainer
from condexp.training.optimizers import build_optimizer
from tests.from_conf import build, load

# A small rate: both ways stay at ordinary numbers, however often they are timed.
BATCH, LR, MOMENTUM = 128, 1e-3, 0.9
TARGET = 1.03


@dataclass
class Losses:
    """The least a sink does."""

    values: list[float] = field(default_factory=list)

    def on_step(self, record: StepRecord, /) -> None:
        """Keep the loss."""
        self.values.append(record.loss)

    def on_eval(self, record: EvalRecord, /) -> None:
        """Never called here."""

    def on_snapshot(self, record: SnapshotRecord, /) -> None:
        """Never called here."""


def random_images(num_samples: int) -> Dataset:
    """Return random 32×32 colour images of ten classes, as bytes; the test set is empty.

    Args:
        num_samples: Size of the training set.

    Returns:
        The data set.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (num_samples, 3, 32, 32), generator=generator)
    targets = torch.randint(0, 10, (num_samples,), generator=generator)
    return Dataset(
        name="random",
        task=Task.CLASSIFICATION,
        train=Split(inputs.to(torch.uint8), targets),
        test=Split(inputs[:0].to(torch.uint8), targets[:0]),
        mean=(128.0, 128.0, 128.0),
        std=(64.0, 64.0, 64.0),
        num_outputs=10,
        checksum="",
    )


def ours(model: nn.Module, data: Dataset, num_steps: int) -> Callable[[], None]:
    """Return a function that trains some steps with condexp's loop.

    Args:
        model: Trained on from call to call.
        data: The training set.
        num_steps: Steps in a call.

    Returns:
        The function.
    """
    optimizer = build_optimizer("sgd", model.parameters(), lr=LR, momentum=MOMENTUM)
    batches = Batches(
        data.train, mean=data.mean, std=data.std, batch_size=BATCH, shuffle=True, seed=0
    )
    plan = Plan(num_steps, batches.steps_per_epoch, snapshot_steps=(), eval_steps=())

    def run() -> None:
        Trainer(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            learning_rate=constant(LR),
            batches=batches,
            plan=plan,
            options=AnalysisOptions(),
            source=Source.TRAIN_BATCH,
            evaluate=lambda _: (0.0, 0.0, 0.0, 0.0),
        ).train([Losses()])

    return run


def by_hand(model: nn.Module, data: Dataset, num_steps: int) -> Callable[[], None]:
    """Return a function that does the same with PyTorch alone, and keeps the loss curve too.

    Args:
        model: Trained on from call to call.
        data: The training set.
        num_steps: Steps in a call.

    Returns:
        The function.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    loss_fn = nn.CrossEntropyLoss()
    images, labels = data.train.inputs, data.train.targets
    mean = torch.tensor(data.mean).view(-1, 1, 1)
    std = torch.tensor(data.std).view(-1, 1, 1)

    def run() -> None:
        model.train()
        losses: list[float] = []
        while len(losses) < num_steps:
            order = torch.randperm(len(images))
            for first in range(0, len(images) - BATCH + 1, BATCH):
                chosen = order[first : first + BATCH]
                inputs = (images[chosen].float() - mean) / std
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), labels[chosen])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if len(losses) == num_steps:
                    break

    return run


def measure(num_pairs: int) -> list[Measurement]:
    """Time both loops on ResNet-20 and on the default MLP.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds of a step.
    """
    digits = load("digits")
    cases = {
        f"loop: ResNet-20, 32x32, batch {BATCH}": (
            build("resnet", (3, 32, 32), 10, depth=20),
            random_images(4 * BATCH),
            3,
        ),
        f"loop: MLP on digits, batch {BATCH}": (
            build("mlp", digits.input_shape, 10, depth=6, width=64, norm="batch"),
            digits,
            200,
        ),
    }
    measurements = []
    for name, (model, data, num_steps) in cases.items():
        times = alternate(
            ours(copy.deepcopy(model), data, num_steps), by_hand(model, data, num_steps), num_pairs
        )
        seconds = [tuple(each / num_steps for each in side) for side in times]
        measurements.append(Measurement(name, seconds[0], seconds[1], TARGET))
    return measurements
