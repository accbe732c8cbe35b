"""Requests to stop: a signal is noted when it comes, and heeded where a run can be left."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TEMPORARY_FAILURE = 130, 75  # Ctrl-C's code, and sysexits.h's "try again later"
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


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run ended because a signal asked for it; its checkpoint is written.

    Args:
        by: The signal.
    """

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by)
        self.signal = by

    def __str__(self) -> str:
        return (
            f"stopped by {self.signal.name}; the same command resumes it, if it does not "
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
        self.signal = self.signal or given


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Note the signals that ask this process to stop instead of dying by them.

    Signals belong to the main thread: in another one nothing is noted, and nothing changed.

    Yields:
        What was asked for so far; true as soon as there is something.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    with _handled(requests.note, heeded_signals()):
        yield requests


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
