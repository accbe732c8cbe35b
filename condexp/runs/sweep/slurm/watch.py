"""Waiting for jobs on Slurm: how each ended, by its own word or, where it left none, by Slurm's."""

import os
import pickle
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from condexp.errors import InputError
from condexp.results.console import say
from condexp.runs.result import RunResult
from condexp.runs.sweep.job import SweepFlags
from condexp.runs.sweep.job_process import TAIL_LINES
from condexp.runs.sweep.job_spec import JobSpec
from condexp.store.disk import ResultsError, locked
from condexp.store.run_folder.liveness import UNFINISHED
from condexp.store.run_folder.status import State, read_status, write_status
from condexp.store.schema.layout import FILE_NAME

# Anything else is still in the queue: running, waiting, or on its way back to waiting.
OVER = frozenset({
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
})
ANSWER_SECONDS = 60


def read_queue() -> dict[str, str] | None:
    """Ask Slurm for the states of this user's jobs, those included that ended minutes ago.

    Returns:
        By the job's number, ``12`` or, in an array, ``12_3``: its state, ``RUNNING`` say; None
        where Slurm does not answer now.
    """
    command = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")
    try:
        answer = subprocess.run(
            (*command, f"--user={os.getuid()}"),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    pairs = (line.strip().partition("|") for line in answer.stdout.splitlines())
    return {number: state for number, _, state in pairs if state}


LOOK_SECONDS = 1.0  # between looks for results
ASK_SECONDS = (2.0, 30.0)  # between questions to Slurm: at first, and in the long run
LOST_SECONDS = 15.0  # after a job's end, for a result to appear on a file system that is slow
LOG_BYTES = 4000
# Ends that are no fault of the job: the next call resumes it.
INTERRUPTIONS = frozenset({"CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT"})


class JobWatcher:
    """Waits for jobs.

    Args:
        folder: Where submitit keeps their results.
        jobs: Each job, and Slurm's number of it.
    """

    def __init__(self, folder: Path, jobs: Sequence[tuple[JobSpec, str]]) -> None:
        self._folder, self._jobs = folder, jobs
        self._open = set(range(len(jobs)))
        self._ended: dict[int, RunResult] = {}
        self._states: dict[str, str] = {}
        self._over_since: dict[int, float] = {}

    def wait(self, flags: SweepFlags) -> list[RunResult]:
        """Wait until all jobs ended, or the sweep is asked to stop: then they are left to Slurm.

        Args:
            flags: Those of the sweep that waits.

        Returns:
            How each job ended or stands.
        """
        start, ask_at = time.monotonic(), 0.0
        while self._open and not flags.stopped:
            self._look()
            now = time.monotonic()
            if now >= ask_at:
                self._ask()
                soonest, latest = ASK_SECONDS
                ask_at = time.monotonic() + min(latest, max(soonest, (now - start) / 10))
            if self._open:
                time.sleep(LOOK_SECONDS)
        if self._open:
            numbers = ", ".join(self._jobs[place][1] for place in sorted(self._open))
            say(
                f"left to Slurm: {numbers}. The same command resumes, and waits for what is in the "
                "queue; scancel ends jobs, those that run with a checkpoint."
            )
        return [self._ended.get(place) or self._left(place) for place in range(len(self._jobs))]

    def _look(self) -> None:
        """Take the results that are there, as far as the file system answers."""
        with suppress(OSError, EOFError, pickle.UnpicklingError):  # it is looked at again
            self._take_results()

    def _take_results(self) -> None:
        # A listing asks the server; a look for one file may be answered from memory.
        there = {path.name for path in self._folder.iterdir()}
        for place in sorted(self._open):
            job, number = self._jobs[place]
            name = f"{number}_0_result.pkl"
            if name in there:
                outcome, value = pickle.loads((self._folder / name).read_bytes())
                if outcome != "success":  # no job raises: its Python was broken before it began
                    reason = str(value).strip().rpartition("\n")[2]
                    value = RunResult(job.folder, State.FAILED, f"Slurm's job {number}: {reason}")
                self._end(place, value)

    def _ask(self) -> None:
        """Give up the jobs that left the queue without a result."""
        states = read_queue()
        if states is None:
            return
        # Slurm forgets a job minutes after its end.
        forgotten = {n: s for n, s in self._states.items() if s in OVER and n not in states}
        self._states = states | forgotten
        now = time.monotonic()
        for place in sorted(self._open):
            state = states.get(self._jobs[place][1])
            if state is not None and state not in OVER:
                self._over_since.pop(place, None)
            elif now - self._over_since.setdefault(place, now) > LOST_SECONDS:
                self._end(place, self._lost(place))

    def _end(self, place: int, result: RunResult) -> None:
        self._open.discard(place)
        self._ended[place] = result
        state = "cancelled" if result.cancelled else result.state
        say(f"job {self._jobs[place][0].name}: {state}  {result.message or result.folder}")

    def _left(self, place: int) -> RunResult:
        job, number = self._jobs[place]
        running = self._states.get(number) == "RUNNING"
        where = "runs" if running else "is in the queue"
        state = State.RUNNING if running else State.PENDING
        return RunResult(job.folder, state, f"Slurm's job {number} {where}")

    def _lost(self, place: int) -> RunResult:
        """Return how a job ended that could not say so, and write it to its ``status.json``."""
        job, number = self._jobs[place]
        state = self._states.get(number, "")
        cancelled = state == "CANCELLED"
        ended = State.INTERRUPTED if state in INTERRUPTIONS else State.FAILED
        how = state.lower().replace("_", " ") or "gone from the queue without a result"
        message = f"Slurm's job {number}: {how}"
        if ended is State.INTERRUPTED:
            message += "; the same command resumes it"
        else:
            message += self._log_tail(number)
        # It may have had no folder yet, and what another process runs is that one's.
        with suppress(InputError, OSError, ResultsError):
            status = read_status(job.folder)
            if status.state in {State.COMPLETE, State.DIVERGED}:
                return RunResult(job.folder, status.state)
            if status.state is State.INTERRUPTED and not state:  # long forgotten by Slurm
                return RunResult(job.folder, status.state, f"Slurm's job {number}: {how}")
            if status.state in UNFINISHED:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                written = replace(status, state=ended, error=message, updated=now)
                with locked(job.folder / FILE_NAME) as owner:
                    write_status(job.folder, written, owner)
        return RunResult(job.folder, ended, message, cancelled=cancelled)

    def _log_tail(self, number: str) -> str:
        log = self._folder / f"{number}_0_log.out"
        try:
            text = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
        except OSError:
            return f"; there is no log {log}: do the nodes see this folder?"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"; its last words: {' / '.join(lines[-TAIL_LINES:])} (log: {log})"
