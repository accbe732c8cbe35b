"""A job in a process of its own, so that its end, however it comes, ends no other.

This side starts the process and waits for it; the other side is :mod:`condexp.runs.sweep.job_main`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from condexp.errors import InputError
from condexp.results.console import say
from condexp.runs.result import RunResult
from condexp.runs.stop_signals import SIGNALS
from condexp.runs.sweep.job_spec import JobSpec
from condexp.runs.workers.interpreter import START
from condexp.store.disk import ResultsError, locked
from condexp.store.run_folder.liveness import UNFINISHED
from condexp.store.run_folder.status import State, read_status, write_status
from condexp.store.schema.layout import FILE_NAME

COMMAND = (sys.executable, "-P", "-c", START.format("condexp.runs.sweep.job_main"))
POLL_SECONDS = 0.1
KILL_SECONDS = 60.0  # from a timeout's request to stop, which takes a step and a checkpoint
TAIL_LINES = 3  # lines of standard error quoted of a job that died
TAIL_SECONDS = 1.0  # for the last of them, where a process of the job's own keeps the pipe open


def run_in_process(
    job: JobSpec,
    reason_to_stop: Callable[[], str | None],
    environment: Mapping[str, str],
    folder: Path,
    grace_seconds: float = float("inf"),
) -> RunResult:
    """Run one job in a fresh interpreter, and tell how it ended even where it cannot.

    Args:
        job: The job.
        reason_to_stop: Asked again and again; an answer stops the job.
        environment: Of the new process.
        folder: Its current folder.
        grace_seconds: Seconds it has for its last step and its checkpoint when ``reason_to_stop``
            stops it, before it is killed.

    Returns:
        How it ended.
    """
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb") as results,
        subprocess.Popen(
            [*COMMAND, str(writing), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            env=environment,
            cwd=folder,
        ) as child,
    ):
        os.close(writing)
        assert child.stdin is not None
        assert child.stderr is not None
        tail = _Tail(child.stderr)
        try:
            with suppress(BrokenPipeError):
                # The pipe stays open: where it ends, the job knows that this process is gone.
                child.stdin.write(f"{job.to_json()}\n".encode())
                child.stdin.flush()
            stop_reason = _wait(child, job.timeout, reason_to_stop, grace_seconds)
        finally:
            child.kill()  # where waiting itself was interrupted
        os.set_blocking(reading, False)  # a process of the job's own may hold the other end
        result = _parse(results.read() or b"")
        if result is not None and result.state is not State.INTERRUPTED:
            return result
        if result is None:
            result = _result_of_dead_process(child, job.folder, stop_reason, tail)
        elif stop_reason:
            result = replace(result, message=stop_reason)
    say(f"job {job.name}: {result.state}  {result.message or result.folder}")
    return result


def _wait(
    child: subprocess.Popen[bytes],
    timeout: float | None,
    reason_to_stop: Callable[[], str | None],
    grace_seconds: float,
) -> str | None:
    """Return why a job was stopped, when it has ended; None where it was not."""
    stop_reason: str | None = None
    start, kill_at = time.monotonic(), float("inf")
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
            # A scheduler's signal reaches every process: this one may have died before it was told.
            return stop_reason or (reason_to_stop() if -child.returncode in SIGNALS else None)
        now = time.monotonic()
        if stop_reason is None:
            stop_reason, kill_at = reason_to_stop(), now + grace_seconds
            if stop_reason is None and timeout is not None and now - start > timeout:
                stop_reason, kill_at = (
                    f"stopped after run.timeout={timeout:g} s",
                    now + KILL_SECONDS,
                )
            if stop_reason:
                child.terminate()
        if now > kill_at:
            child.kill()


class _Tail:
    """Passes a job's standard error on, and keeps its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._end = stream, b""
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def _relay(self) -> None:
        with suppress(OSError, ValueError):  # closed
            while chunk := os.read(self._stream.fileno(), 65536):
                self._end = (self._end + chunk)[-4000:]
                with suppress(OSError, ValueError):  # nobody reads ours; the job's is read on
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()

    @property
    def stderr_tail(self) -> str:
        self._thread.join(TAIL_SECONDS)
        lines = [line.strip() for line in self._end.decode(errors="replace").splitlines()]
        return " / ".join([line for line in lines if line][-TAIL_LINES:])


def _parse(line: bytes) -> RunResult | None:
    try:
        content = json.loads(line)
    except ValueError:  # the process ended before it said a word, or within
        return None
    folder = content["folder"] and Path(content["folder"])
    return RunResult(folder, State(content["state"]), content["message"], content["stored"])


def _result_of_dead_process(
    child: subprocess.Popen[bytes], folder: Path, stop_reason: str | None, tail: _Tail
) -> RunResult:
    """Return what a job could not say itself, and write it to its ``status.json``."""
    code = child.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    words = f"; its last words: {tail.stderr_tail}" if tail.stderr_tail else ""
    message = stop_reason or f"its process {how}{words}"
    result = RunResult(folder, State.INTERRUPTED if stop_reason else State.FAILED, message)
    # It may have ended before it had a folder, and what another process runs is that one's.
    with suppress(InputError, OSError, ResultsError), locked(folder / FILE_NAME) as owner:
        status = read_status(folder)
        if status.pid == child.pid and status.state not in UNFINISHED:
            return RunResult(folder, status.state, status.error)  # all was done but its last word
        if status.pid == child.pid:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            ended = replace(status, state=result.state, error=message, updated=now)
            write_status(folder, ended, owner)
    return result
