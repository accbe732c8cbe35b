"""Records that the training loop reports, and the protocol of those that receive them."""

import math
from dataclasses import dataclass
from typing import Protocol

from condexp.analysis.snapshot import Snapshot


@dataclass(frozen=True)
class StepRecord:
    """One training step.

    Attributes:
        step: 0-based optimizer step.
        loss: Loss of this step's batch, before its update; NaN or Inf where the run diverged.
        lr: Learning rate of this step's update.
        sharpness: λ_max of the Hessian before the update; NaN where it was not measured.
        sharpness_error: An eigenvalue lies within this of it.
    """

    step: int
    loss: float
    lr: float
    sharpness: float = math.nan
    sharpness_error: float = math.nan


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation over the training and the test set, the model in eval mode.

    Attributes:
        step: Number of finished updates.
        epoch: ``step / steps_per_epoch``.
        train_loss: Loss over the training set.
        train_error: Misclassified share of the training set in percent; NaN for regression.
        test_loss: Loss over the test set.
        test_error: Misclassified share of the test set in percent; NaN for regression.
    """

    step: int
    epoch: float
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float


@dataclass(frozen=True)
class SnapshotRecord:
    """One analysis of the network.

    Attributes:
        step: The network is measured before this 0-based update; the number of updates in the run
            stands for the trained network.
        epoch: ``step / steps_per_epoch``.
        snapshot: The measures of every analysed layer.
    """

    step: int
    epoch: float
    snapshot: Snapshot


@dataclass(frozen=True)
class RowCounts:
    """How many records of each kind a results file holds for good.

    Attributes:
        snapshots: Snapshots.
        steps: Training steps.
        evaluations: Evaluations.
    """

    snapshots: int
    steps: int
    evaluations: int


class Sink(Protocol):
    """Receives the records of training, in its order: the store, the console, a logger, a test.

    Sinks are listed in ``Attempt._train`` (``runs/attempt.py``); rank 0 alone calls them.
    """

    def on_step(self, record: StepRecord, /) -> None:
        """Take the loss and learning rate of one step, before the update is made."""

    def on_eval(self, record: EvalRecord, /) -> None:
        """Take one evaluation."""

    def on_snapshot(self, record: SnapshotRecord, /) -> None:
        """Take one snapshot."""
