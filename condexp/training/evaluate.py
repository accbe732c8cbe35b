"""Computes loss and error over whole data sets, the model in eval mode and left as found."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.data.dataset import Task
from condexp.data.loaders import Batches
from condexp.errors import InputError

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


class OneHotMSELoss(nn.MSELoss):
    """The squared error of outputs against classes as one-hot vectors."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean over samples and outputs.

        Args:
            outputs: ``[N, C]``.
            targets: Class indices ``[N]``.

        Returns:
            A scalar.
        """
        return super().forward(outputs, F.one_hot(targets, outputs.shape[1]).to(outputs.dtype))


def build_loss(task: Task, name: str = "task") -> nn.Module:
    """Return a loss by its name.

    Args:
        task: Classification, or regression.
        name: ``cross_entropy``, ``mse``, or ``task`` for the usual one of the two.

    Returns:
        ``nn.CrossEntropyLoss``, or ``nn.MSELoss``: the mean over samples *and* outputs.

    Raises:
        InputError: If the task has no classes for a cross-entropy.
    """
    classes = task is Task.CLASSIFICATION
    if name == "mse":
        return OneHotMSELoss() if classes else nn.MSELoss()
    if name == "cross_entropy" and not classes:
        raise InputError(
            "loss=cross_entropy is of classes, and these data have values: use loss=mse or task."
        )
    return nn.CrossEntropyLoss() if classes else nn.MSELoss()


@dataclass(frozen=True)
class BatchScore:
    """What one batch adds to a score.

    Attributes:
        loss: Mean loss.
        num_samples: B.
        num_wrong: Targets that were missed.
        num_targets: Targets that can be; 0 for regression.
    """

    loss: float
    num_samples: int
    num_wrong: int
    num_targets: int


@torch.no_grad()
def score_batches(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[tuple[Tensor, Tensor]]
) -> list[BatchScore]:
    """Score each batch, in eval mode.

    Args:
        model: Every module's train or eval mode is restored, also after an exception.
        loss_fn: The mean over a batch.
        batches: Inputs [N, …] and targets; class indices are compared with the largest output,
            floating-point targets have no error.

    Returns:
        A score for each batch.
    """
    found: list[tuple[Tensor, Tensor, int, int]] = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for inputs, targets in batches:
            outputs = model(inputs)
            counts = not targets.is_floating_point()
            wrong = (outputs.argmax(1) != targets).sum() if counts else torch.tensor(0)
            loss = loss_fn(outputs, targets)
            found.append((loss, wrong, len(inputs), targets.numel() if counts else 0))
    finally:
        for module, mode in modes:
            module.training = mode
    # Read only now: each number that is fetched from a GPU makes it wait.
    return [BatchScore(float(loss), n, int(wrong), k) for loss, wrong, n, k in found]


def mean_score(batches: Sequence[BatchScore]) -> Score:
    """Return the mean loss and the error over all samples.

    Args:
        batches: The scores of all batches.

    Returns:
        The loss, batch means weighted by the batches' sizes, and the error; NaN of no batch.
    """
    num_targets = sum(batch.num_targets for batch in batches)
    wrong = sum(batch.num_wrong for batch in batches)
    # Counted, not averaged: 18 of 360 are 5 percent to the last bit.
    error = 100 * wrong / num_targets if num_targets else float("nan")
    if not batches:
        return Score(float("nan"), error)
    losses = torch.tensor([batch.loss for batch in batches], dtype=torch.float64)
    weights = torch.tensor([batch.num_samples for batch in batches], dtype=torch.float64)
    return Score(float(losses @ weights / weights.sum()), error)


@dataclass(frozen=True)
class Evaluator:
    """Scores a model on the training and the test set.

    Attributes:
        loss_fn: The training loss.
        train: The training set, unshuffled and not augmented.
        test: The test set.
        communicator: The processes that take turns at the batches.
    """

    loss_fn: LossFunction
    train: Batches
    test: Batches
    communicator: Communicator = SINGLE_PROCESS

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate on both sets.

        Args:
            model: Left as found.

        Returns:
            Losses, and errors in percent; the same on every rank.
        """
        return Evaluation(*self._score(model, self.train), *self._score(model, self.test))

    def _score(self, model: nn.Module, batches: Batches) -> Score:
        rank, size = self.communicator.rank, self.communicator.world_size
        mine = score_batches(model, self.loss_fn, batches.epoch(first=rank, stride=size))
        everyones = self.communicator.all_gather_object(mine)
        # In the order of the set, so that the sum is that of one process.
        rounds = zip_longest(*everyones)
        return mean_score([score for turn in rounds for score in turn if score is not None])
