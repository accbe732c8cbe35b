"""Loss and error over whole data sets, the model in eval mode and left as found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from condexp.data.dataset import Task
from condexp.data.loaders import Batches

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(outputs, targets) -> scalar``, the mean over the batch."""


class Score(NamedTuple):
    """Loss and error over one set; error in percent, NaN for regression."""

    loss: float
    error: float


class Evaluation(NamedTuple):
    """The scores of the training and the test set, in the order of an ``EvalRecord``."""

    train_loss: float
    train_error: float
    test_loss: float
    test_error: float


def build_loss(task: Task) -> nn.Module:
    """Return the task's loss: cross-entropy, or the squared error.

    Args:
        task: Classification, or regression.

    Returns:
        ``nn.CrossEntropyLoss``, or ``nn.MSELoss``: the mean over samples *and* outputs.
    """
    return nn.CrossEntropyLoss() if task is Task.CLASSIFICATION else nn.MSELoss()


@torch.no_grad()
def evaluate(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[tuple[Tensor, Tensor]]
) -> Score:
    """Return the mean loss and the error over all samples, in eval mode.

    Args:
        model: Every module's train or eval mode is restored, also after an exception.
        loss_fn: Its batch means are weighted by the batches' sizes.
        batches: Inputs [N, …] and targets; class indices are compared with the largest output,
            floating-point targets have no error.

    Returns:
        The score.
    """
    losses: list[Tensor] = []
    wrong: list[Tensor] = []
    num_targets = 0
    sizes: list[int] = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for inputs, targets in batches:
            outputs = model(inputs)
            losses.append(loss_fn(outputs, targets))
            if not targets.is_floating_point():
                wrong.append((outputs.argmax(1) != targets).sum())
                num_targets += targets.numel()
            sizes.append(len(inputs))
    finally:
        for module, mode in modes:
            module.training = mode
    # Counted, not averaged: 18 of 360 are 5 percent to the last bit.
    error = 100 * int(torch.stack(wrong).sum()) / num_targets if num_targets else float("nan")
    return Score(_mean(losses, sizes), error)


def _mean(values: list[Tensor], sizes: list[int]) -> float:
    """Return the mean weighted by sizes, NaN if there is none; one transfer for all batches."""
    if not values:
        return float("nan")
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float(torch.stack(values).cpu().double() @ weights / weights.sum())


@dataclass(frozen=True)
class Evaluator:
    """Scores a model on the training and the test set.

    Attributes:
        loss_fn: The training loss.
        train: The training set, unshuffled and not augmented.
        test: The test set.
    """

    loss_fn: LossFunction
    train: Batches
    test: Batches

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate on both sets.

        Args:
            model: Left as found.

        Returns:
            Losses, and errors in percent.
        """
        return Evaluation(
            *evaluate(model, self.loss_fn, self.train.epoch()),
            *evaluate(model, self.loss_fn, self.test.epoch()),
        )
