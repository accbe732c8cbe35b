"""Requests to stop: a signal is noted when it comes, and heeded where a run can be left."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED, TEMPORARY_FAILURE = 130, 75  # Ctrl-C's code, and sysexits.h's "try again later"
LIMIT = signal.SIGALRM  # the timer of run.timeout
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,  # the terminal is closed
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask this process to stop.

    Returns:
        All of them, but for one that it was started to ignore, as ``nohup`` starts it.
    """
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in SIGNALS if not (ignored and number is signal.SIGHUP))


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
            with suppress(OSError, ValueError):  # the terminal may be gone
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, ACKNOWLEDGED)
        self.signal = self.signal or given


@contextmanager
def stop_requests(limit: float | None = None) -> Iterator[StopRequests]:
    """Note the signals that ask this process to stop instead of dying by them.

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
    numbers = heeded_signals() if limit is None else (*heeded_signals(), LIMIT)
    with _handled(requests.note, numbers), _timer(limit):
        yield requests


@contextmanager
def _timer(seconds: float | None) -> Iterator[None]:
    """Have LIMIT sent after some time, if at all."""
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise where a signal comes, while there is nothing to save; Ctrl-C does so by itself.

    Yields:
        Nothing.

    Raises:
        Stopped: At a signal that asks this process to stop.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number))

    deadly = [n for n in heeded_signals() if signal.getsignal(n) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        deadly = []
    with _handled(stop, deadly):
        yield


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[signal.Signals]
) -> Iterator[None]:
    """Give signals to a handler, and back to the one that they had."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            # None is a handler that was not installed from Python: it cannot be put back.
            signal.signal(number, signal.SIG_DFL if own is None else own)
