"""Tells whether the process behind a ``status.json`` still lives: a killed one cannot say so."""

import fcntl
import math
import os
import socket
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from condexp.store.disk import ResultsError
from condexp.store.files import open_regular
from condexp.store.run_folder.status import STATUS_NAME, State, Status, last_known

LOCK_NAME = "results.h5.lock"
# A live run writes its status every few seconds, but a step or an evaluation may take long.
FRESH_SECONDS = 60.0
FRESH_ELSEWHERE_SECONDS = 3600.0  # clocks differ, and of another machine's processes less is known
UNFINISHED = frozenset({State.PENDING, State.RUNNING})


class Liveness(StrEnum):
    """What is known of a run's process."""

    ENDED = "ended"  # it said so itself
    ALIVE = "alive"
    DEAD = "dead"  # it ended without a word
    SILENT = "silent"  # on another machine, for long, and the file system offers no locks


def liveness_of(folder: Path, status: Status) -> Liveness:
    """Find out whether a run's process lives.

    Its lock tells, wherever the file system offers locks: it dies with the process. The lock is
    tried only where the status is old, for trying it can refuse it to a run that is just starting.

    Args:
        folder: The run's folder.
        status: Its status.

    Returns:
        What is known.
    """
    if status.state not in UNFINISHED:
        return Liveness.ENDED
    here = status.host == socket.gethostname()
    present = here and _exists(status.pid)
    fresh = seconds_since_update(status) < (FRESH_SECONDS if here else FRESH_ELSEWHERE_SECONDS)
    # Who says that it runs holds the lock; who is just starting may be refused it by trying.
    certain = status.state is State.RUNNING and os.path.lexists(folder / LOCK_NAME)
    if fresh and (present if here else not certain):
        return Liveness.ALIVE
    held = lock_held(folder)
    if held or (held is None and present):
        return Liveness.ALIVE
    if held is None and not here:
        return Liveness.ALIVE if fresh else Liveness.SILENT
    return Liveness.DEAD


def describe_process(status: Status) -> str:
    """Name the process that a status speaks of.

    Args:
        status: The status.

    Returns:
        For example ``"process 12 on node3"``.
    """
    return f"process {status.pid} on {status.host or 'an unknown machine'}"


def left_alone(status: Status, life: Liveness) -> str:
    """Say why a run is not begun: a process may be at it.

    Args:
        status: Its status.
        life: What is known of that process: alive or silent.

    Returns:
        The message.
    """
    if life is Liveness.ALIVE:
        return f"{describe_process(status)} is at it: left alone"
    return (
        f"no word of {describe_process(status)} since {status.updated}: left alone; if it is dead, "
        f"remove {STATUS_NAME} from the run's folder to resume it"
    )


def refuse_beside_another(folder: Path, *, restart: bool) -> None:
    """Refuse to run where no lock tells that nobody else does: the status has to.

    Args:
        folder: The run's folder, on a file system without locks.
        restart: Whether the run is to be begun anew, beside a process of which nothing is heard.

    Raises:
        ResultsError: If another process lives, or may live.
    """
    if not os.path.lexists(folder / STATUS_NAME):
        return
    status = last_known(folder)
    if status.host == socket.gethostname() and status.pid == os.getpid():
        return  # an earlier process's: its number is this one's now
    life = liveness_of(folder, status)
    if life is Liveness.ALIVE or (life is Liveness.SILENT and not restart):
        raise ResultsError(
            f"{folder}: {left_alone(status, life)}. The file system has no locks that could tell"
        )


def lock_held(folder: Path) -> bool | None:
    """Return whether a process is writing a run's results.

    Args:
        folder: The run's folder.

    Returns:
        None where that cannot be known: the file system offers no locks.
    """
    try:
        handle = open_regular(folder / LOCK_NAME)
    except FileNotFoundError:
        return _folder_locked(folder)
    except OSError:
        return None
    return _locked(handle)


def _folder_locked(folder: Path) -> bool:
    """Return whether a process owns a folder whose lock file was removed."""
    try:
        return bool(_locked(os.open(folder, os.O_RDONLY)))
    except OSError:
        return False


def _locked(handle: int) -> bool | None:
    """Return whether another has locked a file, and close it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def seconds_since_update(status: Status) -> float:
    """Return how long ago a status was written.

    Args:
        status: The status.

    Returns:
        Seconds; infinity where it does not say.
    """
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(status.updated)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return math.inf


def _exists(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # someone else's
        return True
    return True
