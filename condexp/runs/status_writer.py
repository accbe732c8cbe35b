"""Writes ``status.json`` and the log of a live run."""

import logging
import os
import socket
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from math import nan

from numpy import fmin

from condexp.analysis.vocabulary import Matrix, SpectrumStatus
from condexp.store.disk import Owner
from condexp.store.run_folder.status import State, Status, write_status
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord
from condexp.training.loop import Plan

# An incomplete layer is logged once, with its reason.
_NOT_LOGGED = {SpectrumStatus.OK, SpectrumStatus.INCOMPLETE}
STATUS_SECONDS = 5.0  # how stale status.json of a live run may be
logger = logging.getLogger("condexp")


class StatusWriter:
    """A sink that keeps ``status.json`` fresh, and the log short.

    Args:
        owner: The owner of the run's folder.
        plan: How long the run is.
        earlier: What an earlier attempt at the run left, whose time and number are counted on.
    """

    def __init__(self, owner: Owner, plan: Plan, earlier: Status | None = None) -> None:
        self._owner, self._plan, self._earlier = owner, plan, earlier
        self._started = datetime.now(UTC)
        self._written = 0.0
        self._step = 0
        self._last: EvalRecord | None = None
        self._best = nan

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1 on: what was interrupted resumes as the same."""
        if self._earlier is None:
            return 1
        return self._earlier.attempts + (self._earlier.state is State.FAILED)

    def resume(self, step: int, evaluations: Iterable[EvalRecord]) -> None:
        """Take over what the run has behind it.

        Args:
            step: Finished updates.
            evaluations: The evaluations made.
        """
        self._step = step
        for record in evaluations:
            self._remember(record)

    def on_step(self, record: StepRecord, /) -> None:
        """Count the step; write at most every few seconds.

        Args:
            record: The step.
        """
        self._step = record.step + 1
        if time.monotonic() - self._written > STATUS_SECONDS:
            self.write(State.RUNNING)

    def on_eval(self, record: EvalRecord, /) -> None:
        """Remember the scores.

        Args:
            record: The evaluation.
        """
        self._remember(record)
        logger.info(
            "step %d: train loss %.4g, test error %.4g %%",
            record.step,
            record.train_loss,
            record.test_error,
        )

    def on_snapshot(self, record: SnapshotRecord, /) -> None:
        """Log what is no number, and why: an incomplete, a dead or a nonfinite layer.

        Args:
            record: The snapshot.
        """
        for layer in record.snapshot.records:
            if layer.incomplete is not None:
                what = (record.step, layer.info.name, layer.incomplete)
                logger.warning("step %d: layer %s is incomplete: %s", *what)
            for matrix in Matrix:
                spectrum = getattr(layer, matrix)
                if spectrum is not None and spectrum.status not in _NOT_LOGGED:
                    place = (record.step, matrix, layer.info.name, spectrum.status)
                    logger.warning("step %d: %s of layer %s is %s", *place)

    def write(self, state: State, error: str | None = None) -> None:
        """Write the status as it is now; a disk that refuses does not end the run.

        Args:
            state: The run's state.
            error: The message of a failure.

        Raises:
            LostFolderError: If the folder is no longer its owner's.
        """
        now = datetime.now(UTC)
        self._written = time.monotonic()
        earlier = self._earlier
        began, spent = (earlier.started, earlier.seconds) if earlier else ("", 0.0)
        status = Status(
            state=state,
            step=self._step,
            num_steps=self._plan.num_steps,
            epoch=self._step / self._plan.steps_per_epoch,
            test_error=self._last.test_error if self._last else None,
            best_test_error=self._best,
            train_loss=self._last.train_loss if self._last else None,
            started=began or self._started.isoformat(timespec="seconds"),
            updated=now.isoformat(timespec="seconds"),
            seconds=spent + (now - self._started).total_seconds(),
            pid=os.getpid(),
            host=socket.gethostname(),
            error=error,
            attempts=self.attempt,
        )
        try:
            write_status(self._owner.folder, status, self._owner)
        except OSError as reason:
            logger.warning("status.json was not written: %s", reason)

    def _remember(self, record: EvalRecord) -> None:
        self._last = record
        self._best = float(fmin(self._best, record.test_error))  # fmin: NaN loses
