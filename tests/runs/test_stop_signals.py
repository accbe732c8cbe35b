"""Signals are noted while a run cares for them, and do what they did before otherwise."""

import os
import pickle
import signal
import threading

import pytest

from condexp.runs.stop_signals import SIGNALS, Stopped, StopRequests, stop_requests


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        (signal.SIGUSR1, 75),
        (signal.SIGUSR2, 75),
        (signal.SIGINT, 130),
    ],
)
def test_a_signal_is_noted_and_has_its_exit_code(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal is number
    assert [signal.getsignal(each) for each in SIGNALS] == before
    stopped = Stopped(number)
    assert stopped.exit_code == code
    assert number.name in str(stopped)
    # It comes from a sweep's job in another process.
    assert pickle.loads(pickle.dumps(stopped)).exit_code == code


def test_a_second_ctrl_c_is_obeyed_at_once() -> None:
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored_after_an_exception() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]

    def fail() -> None:
        with stop_requests():
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_another_thread_than_the_main_one_notes_nothing() -> None:
    found: list[StopRequests] = []

    def work() -> None:
        with stop_requests() as stop:
            found.append(stop)

    before = [signal.getsignal(each) for each in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not found[0]
    assert [signal.getsignal(each) for each in SIGNALS] == before
