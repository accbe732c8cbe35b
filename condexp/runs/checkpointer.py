"""Saves checkpoints of a run while it trains, and stops it where it was asked to stop."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from condexp.store.disk import ResultsError
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.checkpoints import (
    MIN_SECONDS,
    RunFingerprint,
    logger,
    save_checkpoint,
)
from condexp.training.checkpoint import Checkpoint
from condexp.training.choices import RunState
from condexp.training.distributed.communicator import (
    SINGLE_TRAINING_PROCESS,
    StepAction,
    TrainingCommunicator,
)
from condexp.training.seeding import random_state


class SupportsBool(Protocol):
    """Something that becomes true."""

    def __bool__(self) -> bool:
        """Return whether it is."""


@dataclass(frozen=True)
class CheckpointSchedule:
    """After how many updates checkpoints are due.

    Attributes:
        every_steps: k: after each k-th update.
        every_epochs: k: after each k-th epoch, but not before the last one is ten seconds old.
        steps_per_epoch: Updates in an epoch.
    """

    every_steps: int | None
    every_epochs: int | None
    steps_per_epoch: int

    def next_after(self, step: int) -> int:
        """Return the next number of updates that a checkpoint may be due after.

        Args:
            step: Number of finished updates.

        Returns:
            A larger number; 0, which never comes, where none is due any more.
        """
        epoch_steps = self.every_epochs and self.every_epochs * self.steps_per_epoch
        periods = [period for period in (self.every_steps, epoch_steps) if period]
        return min(((step // period + 1) * period for period in periods), default=0)

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether one is due after so many updates.

        Args:
            step: Number of finished updates, one that :meth:`next_after` gave.
            seconds: Age of the last checkpoint.

        Returns:
            Whether to write one.
        """
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or seconds >= MIN_SECONDS


class Checkpointer:
    """Writes checkpoints between the updates, and says when to stop.

    Args:
        folder: The run's folder.
        writer: Its results, committed before each checkpoint.
        model: The model.
        optimizer: Its optimizer.
        fingerprint: What the run is of.
        schedule: When to write.
        stop: True once the run is to be left.
        start: Number of updates that are finished already.
        crew: The processes that train together; the others save when this one does.
    """

    def __init__(
        self,
        folder: Path,
        writer: ResultsWriter,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        fingerprint: RunFingerprint,
        schedule: CheckpointSchedule,
        stop: SupportsBool,
        start: int = 0,
        crew: TrainingCommunicator = SINGLE_TRAINING_PROCESS,
    ) -> None:
        self._folder, self._writer, self._fingerprint = folder, writer, fingerprint
        self._model, self._optimizer = model, optimizer
        self._schedule, self._stop, self._crew = schedule, stop, crew
        self._next = schedule.next_after(start)
        self._written = time.monotonic()

    def pause(self, step: int) -> bool:
        """Write a checkpoint if one is due; a disk that refuses it does not end the run.

        Args:
            step: Number of finished updates.

        Returns:
            Whether to stop here; the checkpoint is the caller's then.
        """
        wish = self._crew.strongest(self._wish(step))
        if wish is StepAction.SAVE:
            try:
                self.save(step, RunState.UNFINISHED)
            except ResultsError as error:
                logger.warning("%s", error)
        return wish is StepAction.STOP

    def _wish(self, step: int) -> StepAction:
        if self._stop:
            return StepAction.STOP
        if step != self._next:
            return StepAction.GO_ON
        self._next = self._schedule.next_after(step)
        due = self._schedule.is_due(step, time.monotonic() - self._written)
        return StepAction.SAVE if due else StepAction.GO_ON

    def save(self, step: int, state: RunState) -> None:
        """Write a checkpoint, after committing what it counts on.

        Args:
            step: Number of finished updates.
            state: How far the run is.

        Raises:
            ResultsError: If the results or the checkpoint cannot be written.
        """
        epoch, position = divmod(step, self._schedule.steps_per_epoch)
        random, *others = self._crew.to_one(random_state(), 0)
        checkpoint = Checkpoint(
            model=self._model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            random=random,
            step=step,
            epoch=epoch,
            position=position,
            committed=self._writer.sync(),
            config_sha256=self._fingerprint.config_sha256,
            data_sha256=self._fingerprint.data_sha256,
            state=state,
            others=tuple(others),
        )
        save_checkpoint(self._folder, checkpoint)
        self._written = time.monotonic()
