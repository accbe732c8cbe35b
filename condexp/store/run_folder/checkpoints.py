"""The checkpoints in a run's folder: when they are written, and which one a run goes on from."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from condexp.errors import InputError
from condexp.store.disk import ResultsError, as_results_error, replacing
from condexp.store.hdf5.file_objects import DiskFile
from condexp.store.hdf5.writer import ResultsWriter
from condexp.training.checkpoint import Checkpoint, read_checkpoint
from condexp.training.distributed.communicator import SINGLE, Crew, Wish
from condexp.training.loop import RunState
from condexp.training.seeding import random_state

CHECKPOINT_NAME, PREVIOUS_NAME = "checkpoint.pt", "checkpoint.previous.pt"
MIN_SECONDS = 10.0  # between the checkpoints of short epochs: a few milliseconds each
logger = logging.getLogger("condexp")


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint.pt``, and keep the one before it.

    Args:
        folder: The run's folder.
        checkpoint: What to write.

    Raises:
        ResultsError: If it cannot be written; there is still one to go on from, if there was.
    """
    path = folder / CHECKPOINT_NAME
    with (
        as_results_error(path, "The older checkpoint and all committed results are intact"),
        replacing(path, older=folder / PREVIOUS_NAME) as handle,
    ):
        file = DiskFile(handle)
        checkpoint.write(file)
        file.check()


def find_checkpoint(folder: Path, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """Find what a run goes on from: its last checkpoint, or else the one before.

    Args:
        folder: The run's folder.
        check: Raises ``InputError`` where the run cannot go on from a checkpoint.

    Returns:
        The checkpoint; None where there is no file of one.

    Raises:
        InputError: If there are checkpoints, and the run can go on from none.
    """
    problems: list[str] = []
    for path in (folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME):
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
            check(checkpoint)
        except InputError as problem:
            problems.append(str(problem))
            continue
        for found in problems:
            logger.warning("%s; going on from %s, step %d", found, path.name, checkpoint.step)
        return checkpoint
    if problems:
        raise InputError(
            f"the run cannot go on: {'; '.join(problems)}. Give run.on_existing=restart to run "
            "it anew."
        )
    return None


def remove_checkpoints(folder: Path, *, previous_only: bool = False) -> None:
    """Remove the checkpoints that a folder holds, and what a kill left of one.

    Args:
        folder: The run's folder.
        previous_only: Whether ``checkpoint.pt`` stays.
    """
    names = (PREVIOUS_NAME, f"{CHECKPOINT_NAME}.partial", CHECKPOINT_NAME)
    for name in names[:2] if previous_only else names:
        (folder / name).unlink(missing_ok=True)


class Flag(Protocol):
    """Something that becomes true."""

    def __bool__(self) -> bool:
        """Return whether it is."""


@dataclass(frozen=True)
class Rhythm:
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


@dataclass(frozen=True)
class Origin:
    """What a run's numbers come from, by checksum: a checkpoint of another one is refused.

    Attributes:
        config_sha256: Of the identity configuration as YAML.
        data_sha256: Of the data set.
    """

    config_sha256: str
    data_sha256: str


class Checkpointer:
    """Writes checkpoints between the updates, and says when to stop.

    Args:
        folder: The run's folder.
        writer: Its results, committed before each checkpoint.
        model: The model.
        optimizer: Its optimizer.
        origin: What the run is of.
        rhythm: When to write.
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
        origin: Origin,
        rhythm: Rhythm,
        stop: Flag,
        start: int = 0,
        crew: Crew = SINGLE,
    ) -> None:
        self._folder, self._writer, self._origin = folder, writer, origin
        self._model, self._optimizer = model, optimizer
        self._rhythm, self._stop, self._crew = rhythm, stop, crew
        self._next = rhythm.next_after(start)
        self._written = time.monotonic()

    def pause(self, step: int) -> bool:
        """Write a checkpoint if one is due; a disk that refuses it does not end the run.

        Args:
            step: Number of finished updates.

        Returns:
            Whether to stop here; the checkpoint is the caller's then.
        """
        wish = self._crew.strongest(self._wish(step))
        if wish is Wish.SAVE:
            try:
                self.save(step, RunState.UNFINISHED)
            except ResultsError as error:
                logger.warning("%s", error)
        return wish is Wish.STOP

    def _wish(self, step: int) -> Wish:
        if self._stop:
            return Wish.STOP
        if step != self._next:
            return Wish.GO_ON
        self._next = self._rhythm.next_after(step)
        due = self._rhythm.is_due(step, time.monotonic() - self._written)
        return Wish.SAVE if due else Wish.GO_ON

    def save(self, step: int, state: RunState) -> None:
        """Write a checkpoint, after committing what it counts on.

        Args:
            step: Number of finished updates.
            state: How far the run is.

        Raises:
            ResultsError: If the results or the checkpoint cannot be written.
        """
        epoch, position = divmod(step, self._rhythm.steps_per_epoch)
        random, *others = self._crew.to_one(random_state(), 0)
        checkpoint = Checkpoint(
            model=self._model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            random=random,
            step=step,
            epoch=epoch,
            position=position,
            committed=self._writer.secure(),
            config_sha256=self._origin.config_sha256,
            data_sha256=self._origin.data_sha256,
            state=state,
            others=tuple(others),
        )
        save_checkpoint(self._folder, checkpoint)
        self._written = time.monotonic()
