"""A status that says ``running`` is believed only while something speaks for it."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from condexp.store.disk import locked
from condexp.store.run_folder import liveness
from condexp.store.run_folder.liveness import LOCK_NAME, Liveness, liveness_of, lock_held
from condexp.store.run_folder.status import State, Status
from condexp.store.schema.layout import FILE_NAME

HERE = socket.gethostname()


def status(
    state: State = State.RUNNING, *, pid: int | None, host: str = HERE, silent: float = 0
) -> Status:
    said = datetime.now(UTC) - timedelta(seconds=silent)
    return Status(state, pid=pid, host=host, updated=said.isoformat(timespec="seconds"))


@pytest.fixture(scope="module")
def gone() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run whose lock a process holds."""
    with locked(tmp_path / FILE_NAME):
        yield tmp_path


def test_the_lock_is_the_one_a_writer_takes(held: Path) -> None:
    assert f"{FILE_NAME}.lock" == LOCK_NAME
    assert lock_held(held) is True


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    assert lock_held(tmp_path) is False
    code = (
        "import os, sys; from pathlib import Path; from condexp.store.disk import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / FILE_NAME)], check=False)
    assert (tmp_path / LOCK_NAME).exists()
    assert lock_held(tmp_path) is False
    with locked(tmp_path / FILE_NAME):  # to ask is not to take
        pass


@pytest.mark.parametrize("state", list(State))
def test_who_has_ended_said_so(tmp_path: Path, gone: int, state: State) -> None:
    unfinished = state in {State.RUNNING, State.PENDING}
    expected = Liveness.DEAD if unfinished else Liveness.ENDED
    assert liveness_of(tmp_path, status(state, pid=gone)) is expected


def test_on_this_machine_the_process_and_its_lock_tell(tmp_path: Path, gone: int) -> None:
    alive = os.getpid()
    assert liveness_of(tmp_path, status(pid=gone)) is Liveness.DEAD
    assert liveness_of(tmp_path, status(pid=None)) is Liveness.DEAD
    # Between two locks of its start a run holds none.
    assert liveness_of(tmp_path, status(pid=alive, silent=30)) is Liveness.ALIVE
    # Another process has got the number since.
    assert liveness_of(tmp_path, status(pid=alive, silent=100)) is Liveness.DEAD
    damaged = Status(State.RUNNING, pid=alive, host=HERE, updated="yesterday")
    assert liveness_of(tmp_path, damaged) is Liveness.DEAD


def test_a_held_lock_is_a_life(held: Path, gone: int) -> None:
    # In another container of this machine, whose processes are not seen from here.
    assert liveness_of(held, status(pid=gone)) is Liveness.ALIVE
    assert liveness_of(held, status(pid=os.getpid(), silent=1e6)) is Liveness.ALIVE  # a long step
    assert liveness_of(held, status(pid=gone, host="other", silent=1e6)) is Liveness.ALIVE


def test_of_another_machine_less_is_known(
    tmp_path: Path, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert liveness_of(tmp_path, status(pid=gone, host="other", silent=600)) is Liveness.ALIVE
    assert liveness_of(tmp_path, status(pid=gone, host="other", silent=7200)) is Liveness.DEAD

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / LOCK_NAME).touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert lock_held(tmp_path) is None
    assert liveness_of(tmp_path, status(pid=gone, host="other", silent=7200)) is Liveness.SILENT
    assert liveness_of(tmp_path, status(pid=gone)) is Liveness.DEAD
    assert liveness_of(tmp_path, status(pid=os.getpid(), silent=1e6)) is Liveness.ALIVE


def test_a_process_of_another_user_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert liveness._exists(1)
