"""Saving checkpoints of a run between its updates, and stopping it when asked to."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.store.disk import LostFolderError, ResultsError
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.checkpoints import (
    CHECKPOINT_NAME,
    MIN_SECONDS,
    RunFingerprint,
    logger,
    save_checkpoint,
)
from condexp.store.run_folder.kept_checkpoints import keep_checkpoint
from condexp.training.checkpoint import Checkpoint
from condexp.training.choices import RunState
from condexp.training.distributed.communicator import StepAction, TrainingCommunicator
from condexp.training.seeding import random_state


class SupportsBool(Protocol):
    """A condition that may become true while a run trains."""

    def __bool__(self) -> bool:
        """Return whether it holds now."""


@dataclass(frozen=True)
class CheckpointSchedule:
    """The numbers of updates after which checkpoints are due.

    Attributes:
        every_steps: Number of updates between checkpoints; None: not by updates.
        every_epochs: Number of epochs between checkpoints, which wait until the last one is ten
            seconds old; None: not by epochs.
        steps_per_epoch: Number of updates in an epoch.
    """

    every_steps: int | None
    every_epochs: int | None
    steps_per_epoch: int

    def next_after(self, step: int) -> int:
        """Return the next number of updates after which a checkpoint may be due.

        Args:
            step: Number of finished updates.

        Returns:
            A larger number; 0, which is never reached, where no checkpoint is due any more.
        """
        epoch_steps = self.every_epochs and self.every_epochs * self.steps_per_epoch
        periods = [period for period in (self.every_steps, epoch_steps) if period]
        return min(((step // period + 1) * period for period in periods), default=0)

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether a checkpoint is due.

        Args:
            step: Number of finished updates, as :meth:`next_after` returned it.
            seconds: Age of the last checkpoint.

        Returns:
            Whether to write a checkpoint now.
        """
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or seconds >= MIN_SECONDS


class Checkpointer:
    """Writes checkpoints between updates and decides, with all ranks, when to stop.

    Args:
        folder: The run's folder.
        writer: The writer of the run's results, which are committed before each checkpoint.
        model: The network that is trained.
        optimizer: The optimizer of its parameters.
        fingerprint: The checksums of the run's configuration and data.
        schedule: The updates after which to write.
        stop: True once the run is asked to stop.
        start: Number of updates that are finished already.
        communicator: The processes that train together; this one is rank 0, and the others save
            their random states with it.
        keep: How many checkpoints stay under their steps' names, or ``all``.
        eigenvectors: The trainer's, which it changes.
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
        communicator: TrainingCommunicator = SINGLE_PROCESS,
        keep: int | str = 0,
        eigenvectors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._folder, self._writer, self._fingerprint = folder, writer, fingerprint
        self._model, self._optimizer = model, optimizer
        self._schedule, self._stop, self._communicator = schedule, stop, communicator
        self._keep, self._eigenvectors = keep, {} if eigenvectors is None else eigenvectors
        self._next = schedule.next_after(start)
        self._written = time.monotonic()

    def pause(self, step: int) -> bool:
        """Write a checkpoint if one is due; a failure to write it does not end the run.

        Args:
            step: Number of finished updates.

        Returns:
            Whether to stop here; then the caller writes the checkpoint.

        Raises:
            LostFolderError: If the run's folder is no longer this process's.
        """
        action = self._communicator.all_reduce_max(self._action(step))
        if action is StepAction.SAVE:
            try:
                self.save(step, RunState.UNFINISHED)
            except LostFolderError:
                raise
            except ResultsError as error:
                logger.warning("%s", error)
        return action is StepAction.STOP

    def _action(self, step: int) -> StepAction:
        if self._stop:
            return StepAction.STOP
        if step != self._next:
            return StepAction.CONTINUE
        self._next = self._schedule.next_after(step)
        due = self._schedule.is_due(step, time.monotonic() - self._written)
        return StepAction.SAVE if due else StepAction.CONTINUE

    def save(self, step: int, state: RunState) -> None:
        """Write a checkpoint, after committing the results that it refers to.

        Args:
            step: Number of finished updates.
            state: Unfinished, complete or diverged.

        Raises:
            ResultsError: If the results or the checkpoint cannot be written.
        """
        epoch, position = divmod(step, self._schedule.steps_per_epoch)
        random, *others = self._communicator.gather_objects(random_state(), dst=0)
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
            eigenvectors=self._eigenvectors,
        )
        owner = self._writer.owner
        save_checkpoint(self._folder, checkpoint, owner)
        keep_checkpoint(owner, CHECKPOINT_NAME, step, self._keep)
        self._written = time.monotonic()
