"""A job on a cluster's node, with processes that stand in for training, submitit and Slurm."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from submitit.core import job_environment
from submitit.core.utils import DelayedSubmission, JobPaths

from condexp.runs.result import RunResult
from condexp.runs.sweep import job_process
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.slurm import job as slurm_job
from condexp.runs.sweep.slurm.job import SlurmTask
from condexp.store.disk import locked
from condexp.store.run_folder.status import State, Status, write_status
from tests.runs.sweep.specs import job_spec
from tests.waiting import GUARD_SECONDS

# Stands in for job_main: Slurm's signals reach it and the process that waits for it. A stubborn one
# lives until it is killed; where nobody kills it, it says so.
CHILD = """
import json, os, signal, sys, time
job = json.loads(sys.stdin.readline())
def end(number=None, frame=None):
    state = "interrupted" if number else "complete"
    told = f"{os.environ['OMP_NUM_THREADS']} threads, {job['config']}"
    content = {"folder": None, "state": state, "message": told}
    os.write(int(sys.argv[1]), json.dumps(content | {"stored": False}).encode())
    os._exit(0)
signal.signal(signal.SIGUSR2, signal.SIG_IGN if STUBBORN else end)
signal.signal(signal.SIGTERM, signal.SIG_IGN if STUBBORN else end)
for number in NUMBERS:
    os.kill(os.getppid(), number)
if not NUMBERS:
    end()
time.sleep(GUARD_SECONDS)
open("outlived", "w").close()
""".replace("GUARD_SECONDS", str(GUARD_SECONDS))
CONFIG = "run: {on_existing: restart}\n"
Run = Callable[..., RunResult]


@pytest.fixture
def task(tmp_path: Path) -> SlurmTask:
    board, run = tmp_path / "board", tmp_path / "run"
    board.mkdir()
    run.mkdir()
    job = job_spec(run, config=CONFIG)
    sweep = JobTask(SweepFlags(board), (job,), folder=tmp_path)
    return SlurmTask(sweep, job, 30, datetime.now(UTC))


@pytest.fixture
def submitted(task: SlurmTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The task as submitit submitted it, with its handlers in place; scontrol notes its calls."""
    submission = DelayedSubmission(task)
    submission.set_timeout(60, 1)
    path = tmp_path / "7_0_submitted.pkl"
    submission.dump(path)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/called\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    environment = {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path)}
    slurm = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    for name, value in (environment | slurm | {"SLURM_CPUS_ON_NODE": "3"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = {n: signal.getsignal(n) for n in (*slurm_job.SIGNALS, signal.SIGCONT)}
    paths = JobPaths(tmp_path, job_id="7_0", task_id=0)
    job_environment.JobEnvironment()._handle_signals(paths, submission)
    yield path
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(task: SlurmTask, submitted: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the task, with signals that Slurm sends while it trains."""

    def start(*numbers: signal.Signals, grace_seconds: float | None = None) -> RunResult:
        script = CHILD.replace("NUMBERS", str([int(number) for number in numbers]))
        script = script.replace("STUBBORN", str(grace_seconds is not None))
        monkeypatch.setattr(job_process, "COMMAND", (sys.executable, "-c", script))
        return (task if grace_seconds is None else replace(task, grace_seconds=grace_seconds))()

    return start


def called(folder: Path) -> list[str]:
    path = folder / "called"
    return path.read_text().splitlines() if path.exists() else []


def test_an_undisturbed_job_has_as_many_threads_as_cores(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run() == RunResult(None, State.COMPLETE, f"3 threads, {CONFIG}")
    assert called(tmp_path) == []
    assert "FORCE_COLOR" not in os.environ  # a log is no terminal


@pytest.mark.parametrize(
    "signals", [(signal.SIGUSR2,), (signal.SIGTERM, signal.SIGUSR2)], ids=["limit", "preemption"]
)
def test_out_of_time_it_goes_back_to_the_queue(
    run: Run, submitted: Path, tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    with pytest.raises(SystemExit):
        run(*signals)
    assert called(tmp_path) == ["requeue 7_0"]
    assert isinstance(DelayedSubmission.load(submitted).function, SlurmTask)


@pytest.mark.parametrize(("seconds", "then"), [(1, "resume"), (-1, "restart")])
def test_what_it_began_anew_it_goes_on_with(
    run: Run, task: SlurmTask, monkeypatch: pytest.MonkeyPatch, seconds: int, then: str
) -> None:
    began = (task.submitted + timedelta(seconds=seconds)).isoformat()
    write_status(task.job.folder, Status(State.INTERRUPTED, started=began))
    assert "on_existing: restart" in str(run().message)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert f"on_existing: {then}" in str(run().message)


def test_a_job_that_makes_no_checkpoint_in_time_goes_back_without(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(signal.SIGUSR2, grace_seconds=0.5)
    assert not (tmp_path / "outlived").exists()
    assert called(tmp_path) == ["requeue 7_0"]


def test_sigterm_alone_leaves_it_to_slurm_whether_it_starts_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_job, "TERM_SECONDS", 0.6)
    result = run(signal.SIGTERM)
    assert (result.state, result.message) == (State.INTERRUPTED, "stopped by SIGTERM")
    assert called(tmp_path) == []


def test_too_many_time_limits_are_said(
    run: Run, task: SlurmTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = DelayedSubmission(task)
    submission.set_timeout(5, 0)  # below ten minutes submitit takes every signal for a time limit
    paths = JobPaths(tmp_path, job_id="7_0", task_id=0)
    job_environment.JobEnvironment()._handle_signals(paths, submission)
    result = run(signal.SIGUSR2)
    assert result.state is State.INTERRUPTED
    assert "not requeued: Job not requeued because: timed-out too many times" in str(result.message)
    assert called(tmp_path) == []


def test_without_scontrol_it_is_said_and_ends(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run(signal.SIGUSR2)
    assert result.state is State.INTERRUPTED
    assert "not requeued" in str(result.message)
    assert "scontrol" in str(result.message)


def test_its_own_last_process_on_another_machine_is_not_another(
    run: Run, task: SlurmTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = task.job.folder
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_status(folder, Status(State.RUNNING, pid=1, host="elsewhere", updated=now))
    result = run()
    assert result.state is State.RUNNING
    assert "process 1 on elsewhere is at it: left alone" in str(result.message)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run().state is State.COMPLETE
    # The lock of a process that lives is another's all the same.
    lock = "import fcntl; f = open('results.h5.lock'); fcntl.flock(f, 2); print(flush=True); "
    with locked(folder / "results.h5"):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", f"{lock}input()"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert run().state is State.RUNNING
        holder.communicate(b"\n")


def test_after_a_failure_it_does_not_start_but_goes_on(
    run: Run, task: SlurmTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.sweep.flags.fail()
    result = run()
    assert result.state is State.PENDING
    assert "run.fail_fast=true" in str(result.message)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run().state is State.COMPLETE
