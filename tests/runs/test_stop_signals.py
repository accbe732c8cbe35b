"""Signals are noted while a run cares for them, and do what they did before otherwise."""

import os
import pickle
import signal
import threading
from pathlib import Path

import pytest

from condexp.runs.stop_signals import LIMIT, SIGNALS, Stopped, StopRequests, stop_requests
from condexp.store.run_folder.status import State, read_status
from tests.in_process import run
from tests.waiting import wait_until


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


def test_ctrl_c_is_acknowledged_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert "stopping after this layer or step" in capfd.readouterr().err
        assert stop


def test_a_limit_is_a_request_to_stop() -> None:
    before = signal.getsignal(LIMIT)
    with stop_requests(0.001) as stop:
        wait_until(lambda: bool(stop))
    assert (signal.getsignal(LIMIT), signal.getitimer(signal.ITIMER_REAL)[0]) == (before, 0)
    assert stop.signal is LIMIT
    assert Stopped(LIMIT).exit_code == 75
    assert str(Stopped(LIMIT)).startswith("stopped after run.timeout; the same command resumes it")


def test_the_timeout_of_a_single_run(tmp_path: Path) -> None:
    few = ["dataset.subset.train=40", "dataset.subset.test=20", "analysis=none", "model.depth=2"]
    with pytest.raises(Stopped, match=r"after run\.timeout"):
        run(tmp_path, *few, "run.timeout=0.001", "trainer.epochs=100")
    (folder,) = (tmp_path / "default").iterdir()
    assert read_status(folder).state is State.INTERRUPTED
    assert (folder / "checkpoint.pt").exists()
