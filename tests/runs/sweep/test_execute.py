"""A sweep from the command line: what happens to one job, or to the sweep, costs no other's result.

Every job is a process that imports torch: few of them here, more under ``-m slow``.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from condexp.cli.main import main
from tests.in_process import run_jobs_here
from tests.waiting import GUARD_SECONDS, lives, wait_until

# A user's model that misbehaves in training, not when it is tried out. Where a file "hold" is, it
# waits in its first step for a request to stop: however busy the machine is, that comes in time.
MODEL = f"""
import math, os, signal, sys, time
from torch import nn
from condexp.runs import attempt

attempt.draw_overview = lambda folder: None  # longer than all the rest of a job

asked = []

def note_requests():
    for number in (signal.SIGINT, signal.SIGTERM):
        def note(number, frame, before=signal.getsignal(number)):
            asked.append(number)
            before(number, frame)
        signal.signal(number, note)

def wait_to_be_asked():
    for _ in range({GUARD_SECONDS * 100}):
        if asked:
            return
        time.sleep(0.01)
    raise RuntimeError("nobody asked")

class Net(nn.Module):
    def __init__(self, input_shape, num_outputs, fault="none"):
        super().__init__()
        self.fc = nn.Linear(math.prod(input_shape), num_outputs)
        self.fault = fault
        self.started = False

    def forward(self, inputs):
        if inputs.device.type != "meta" and len(inputs) > 2 and not self.started:
            self.started = True
            if os.path.exists("hold"):
                note_requests()
            with open("started", "a") as file:
                file.write(f"{{os.getpid()}}\\n")
            if self.fault == "raise":
                raise RuntimeError("the accelerator fell over")
            if self.fault == "exit":
                sys.exit(3)
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        if self.training and self.started and os.path.exists("hold"):
            wait_to_be_asked()
        return self.fc(inputs.flatten(1))
"""
TINY = [
    "model=import",
    "model.target=faulty:Net",
    "trainer.steps=3",
    "dataset=gaussian",  # drawn at once: the digits' library takes a second to import
    "dataset.num_train=60",
    "trainer.batch_size=20",
    "analysis.schedule.log_spaced=2",
]
LAUNCHERS = ["basic", pytest.param("local", marks=pytest.mark.slow)]
FAULTS = "model.kwargs.fault=none,raise,exit,kill"
Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with ``faulty.py``, for runs and all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "faulty.py").write_text(MODEL)
    yield tmp_path
    sys.modules.pop("faulty", None)


@pytest.fixture
def sweep(capfd: pytest.CaptureFixture[str]) -> Sweep:
    """Run a sweep of tiny jobs; what the jobs print is seen too."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["-m", *TINY, *args])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def states(folder: Path) -> list[str]:
    return sorted(
        str(json.loads(path.read_text())["state"]) for path in folder.rglob("status.json")
    )


def started(folder: Path) -> list[int]:
    """The processes that began to train, each of them once."""
    path = folder / "started"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_until_started(process: subprocess.Popen[str], folder: Path, num_jobs: int) -> None:
    wait_until(lambda: len(started(folder)) == num_jobs or process.poll() is not None)
    assert process.poll() is None, process.communicate()


@contextmanager
def background(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a process of its own, whose jobs train until they are asked to stop."""
    command = (sys.executable, "-m", "condexp", "run", "-m", *TINY, *args)
    (folder / "hold").touch()
    # A group of its own, as a terminal's foreground job has.
    with subprocess.Popen(
        command,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    (folder / "hold").unlink()


def check_faults(sweep: Sweep, folder: Path, overrides: Sequence[str], num_good: int) -> None:
    code, out, err = sweep(*overrides)
    assert code == 1
    assert states(folder) == ["complete"] * num_good + ["failed"] * 3
    assert "RuntimeError: the accelerator fell over" in out
    assert "SystemExit: 3" in out
    assert "its process was killed by SIGKILL" in out
    assert f"{num_good} complete, 3 failed" in out
    assert "Traceback" not in out + err
    assert len(set(started(folder))) == num_good + 3
    # The same command again: the three, and no other.
    (folder / "started").unlink()
    code, out, _ = sweep(*overrides)
    assert (code, len(started(folder))) == (1, 3)
    assert out.count("complete (stored)") == num_good
    assert main(["status", str(folder)]) == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_no_job_ends_another(sweep: Sweep, folder: Path, launcher: str) -> None:
    check_faults(sweep, folder, [FAULTS, f"hydra/launcher={launcher}"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_grid_of_eight(sweep: Sweep, folder: Path, launcher: str) -> None:
    faults = "model.kwargs.fault=a,b,raise,c,exit,d,kill,e"  # a letter is none
    check_faults(sweep, folder, [faults, f"hydra/launcher={launcher}"], 5)


def test_two_at_a_time(sweep: Sweep, folder: Path) -> None:
    code, out, _ = sweep("model.kwargs.fault=kill,none", "seed=1,1", "hydra/launcher=local")
    assert code == 1
    assert states(folder) == ["complete", "failed"]
    assert "its process was killed by SIGKILL" in out
    # The repeated ones were run once.
    assert len(started(folder)) == 2
    assert "the same as job 1: run once" in out
    assert "the same as job 3: run once" in out
    assert "sweep of 4 jobs" in out
    # The cores were divided among two.
    num_cores = len(os.sched_getaffinity(0))
    for path in folder.rglob("provenance.json"):
        hardware = json.loads(path.read_text())["hardware"]
        assert hardware["num_threads"] == max(1, num_cores // 2)


def test_after_the_first_failure_no_more_are_started(sweep: Sweep, folder: Path) -> None:
    code, out, _ = sweep("model.kwargs.fault=raise,none", "run.fail_fast=true")
    assert code == 1
    assert states(folder) == ["failed"]
    assert "not started: another job failed, and run.fail_fast=true" in out
    assert "1 failed, 1 not started" in out


def test_a_job_out_of_time_is_interrupted_and_can_be_finished(
    sweep: Sweep, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "hold").touch()
    with monkeypatch.context() as patch:
        # Its time is up when it trains, and not before.
        patch.setattr("time.monotonic", lambda: 16.0 * bool(started(folder)))
        code, out, _ = sweep("run.timeout=15")
    assert code == 75
    assert "stopped after run.timeout=15 s" in out
    assert states(folder) == ["interrupted"]
    (folder / "hold").unlink()
    run_jobs_here(monkeypatch)
    assert sweep()[0] == 0
    assert states(folder) == ["complete"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(sweep: Sweep, folder: Path) -> None:
    before = set(folder.rglob("*"))
    code, out, _ = sweep("seed=1,2,2", "run.dry_run=true")
    assert code == 0
    assert "3 jobs; nothing is run" in out
    assert "2 to run, 1 repeated; time unknown; disk up to" in out
    assert out.count("3 of 3") == 2
    assert "repeated of job 2" in out
    after = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_stops_every_job_and_the_same_command_goes_on(
    sweep: Sweep, folder: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    at_a_time = 2 if launcher == "local" else 1
    seeds = ",".join(map(str, range(1, at_a_time + 2)))
    overrides = [f"seed={seeds}", f"hydra/launcher={launcher}"]
    with background(folder, *overrides) as process:
        wait_until_started(process, folder, at_a_time)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert states(folder) == ["interrupted"] * at_a_time
    assert not any(map(lives, started(folder)))
    assert f"{at_a_time} interrupted, 1 not started" in out
    if launcher == "basic":
        run_jobs_here(monkeypatch)
    code, out, _ = sweep(*overrides)
    assert code == 0
    assert states(folder) == ["complete"] * (at_a_time + 1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_grid_alone_reaches_its_jobs(folder: Path, number: signal.Signals) -> None:
    with background(folder, "seed=1,2") as process:
        wait_until_started(process, folder, 1)
        process.send_signal(number)
        out, err = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 75, out + err
    assert states(folder) == ["interrupted"]
    assert not any(map(lives, started(folder)))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_grid_leaves_no_orphan(folder: Path, launcher: str) -> None:
    with background(folder, "seed=1,2", f"hydra/launcher={launcher}") as process:
        wait_until_started(process, folder, 2 if launcher == "local" else 1)
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(lives, started(folder))))
        wait_until(lambda: not _group(process.pid))
    assert set(states(folder)) == {"interrupted"}


def _group(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True
