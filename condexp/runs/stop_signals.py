"""Requests to stop: a signal is noted when it comes, and heeded where a run can be left."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TEMPORARY_FAILURE = 130, 75  # Ctrl-C's code, and sysexits.h's "try again later"
LIMIT = signal.SIGALRM  # the timer of run.timeout
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


ACKNOWLEDGED = (
    b"\ncondexp: stopping after this layer or step, with a checkpoint; Ctrl-C again ends at once\n"
)


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run ended because a signal asked for it; its checkpoint is written.

    Args:
        by: The signal.
    """

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by)
        self.signal = by

    def __str__(self) -> str:
        why = "after run.timeout" if self.signal is LIMIT else f"by {self.signal.name}"
        return (
            f"stopped {why}; the same command resumes it, if it does not "
            "hold run.on_existing=restart"
        )

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 75 for the signals of schedulers."""
        return INTERRUPTED if self.signal is signal.SIGINT else TEMPORARY_FAILURE


class StopRequests:
    """What was asked for so far. Made by :func:`stop_requests`."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal; Ctrl-C after any other request is obeyed at once.

        Args:
            number: The signal.

        Raises:
            KeyboardInterrupt: At Ctrl-C when a request is noted already.
        """
        given = signal.Signals(number)
        if self and given is signal.SIGINT:
            raise KeyboardInterrupt
        if given is signal.SIGINT:  # a long snapshot comes first; not by print, which may be busy
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, ACKNOWLEDGED)
        self.signal = self.signal or given


@contextmanager
def stop_requests(limit: float | None = None) -> Iterator[StopRequests]:
    """Note SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 instead of dying by them.

    Signals belong to the main thread: in another one nothing is noted, and nothing changed.

    Args:
        limit: Seconds after which a request is noted as if by a signal; None: no limit.

    Yields:
        What was asked for so far; true as soon as there is something.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    numbers = SIGNALS if limit is None else (*SIGNALS, LIMIT)
    before = {number: signal.signal(number, requests.note) for number in numbers}
    if limit is not None:
        signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield requests
    finally:
        if limit is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            # None is a handler that was not installed from Python: it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
