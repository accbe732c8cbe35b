"""The record that a callback keeps: its events come one by one, where a loop has a ``with``."""

from contextlib import AbstractContextManager
from typing import Any

from condexp.runs.record import RunRecord, record_run


class CallbackRecord:
    """A :class:`~condexp.runs.record.RunRecord` that is opened and closed by events."""

    def __init__(self) -> None:
        self._run: RunRecord | None = None
        self._step: AbstractContextManager[None] | None = None

    @property
    def in_step(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._step is not None

    def open(self, *arguments: Any, **options: Any) -> None:
        """Begin, or go on with, the record; one that is open is closed before.

        Args:
            *arguments: As for :func:`condexp.record_run`.
            **options: Likewise.
        """
        self.close(None)
        self._run = record_run(*arguments, **options).__enter__()

    def begin_step(self, step: int) -> None:
        """Begin an update."""
        if self._run is not None:
            self._step = self._run.step(step)
            self._step.__enter__()

    def end_step(self) -> None:
        """End an update: all its gradients are there."""
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)

    def log(self, loss: float) -> None:
        """Keep the loss of the last step."""
        if self._run is not None:
            self._run.log(loss=loss)

    def close(self, error: BaseException | None) -> None:
        """End the record, if one is open.

        Args:
            error: What ended the training, which is raised where it came from.
        """
        run, step, self._run, self._step = self._run, self._step, None, None
        if step is not None:  # it did not reach its update: its hooks go, and it is not told
            error = error or RuntimeError("the training ended within a step")
            try:
                step.__exit__(type(error), error, error.__traceback__)
            except BaseException as same:
                if same is not error:
                    raise
        if run is not None:
            run.__exit__(None if error is None else type(error), error, None)
