"""A job's process may end in every way; what is told of it is right each time. No torch here."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from condexp.runs.result import RunResult
from condexp.runs.sweep import job_process
from condexp.runs.sweep.job_process import run_in_process
from condexp.store.run_folder.status import State, Status, read_status, write_status
from tests.runs.sweep.specs import job_spec
from tests.waiting import GUARD_SECONDS, lives

# Stands in for job_main: it reads its job, has a way to give a result, and can live on until it is
# killed, having said that it does; where nobody kills it, it says that too.
PRELUDE = f"""
import json, os, signal, subprocess, sys, time
job = json.loads(sys.stdin.readline())
def result(state, message=None):
    content = {{"folder": job["folder"], "state": state, "message": message, "stored": False}}
    os.write(int(sys.argv[1]), json.dumps(content).encode())
def live_on():
    open(job["folder"] + "/lives", "w").close()
    time.sleep({GUARD_SECONDS})
    open(job["folder"] + "/outlived", "w").close()
"""
Run = Callable[..., RunResult]


class Clock:
    """Stands still until a job lives on, and goes by some seconds a look from then on."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.living, self.seconds, self.now = folder / "lives", seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds * self.living.exists()
        return self.now


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a script as a job."""

    monkeypatch.setattr(job_process, "TAIL_SECONDS", GUARD_SECONDS)

    def start(script: str, reason: str | None = None, timeout: float | None = None) -> RunResult:
        monkeypatch.setattr(job_process, "COMMAND", (sys.executable, "-c", PRELUDE + script))
        job = job_spec(tmp_path, timeout=timeout)
        living = tmp_path / "lives"
        living.unlink(missing_ok=True)

        def reason_to_stop() -> str | None:
            return reason if living.exists() else None

        result = run_in_process(job, reason_to_stop, os.environ, tmp_path)
        assert not (tmp_path / "outlived").exists()
        return result

    return start


def test_a_result_comes_back_and_ends_the_matter(run: Run, tmp_path: Path) -> None:
    assert run("result('complete')") == RunResult(tmp_path, State.COMPLETE)
    # What happens after it, at the interpreter's end say, changes nothing.
    ended = run("result('diverged', 'why'); os.kill(os.getpid(), signal.SIGKILL)")
    assert ended == RunResult(tmp_path, State.DIVERGED, "why")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("os._exit(3)", "its process exited with code 3"),
        ("sys.exit()", "its process exited with code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "its process was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGUSR1)", "its process was killed by SIGUSR1"),
        (
            "print('a\\nb\\n\\nc\\nd', file=sys.stderr); sys.exit(2)",
            "its process exited with code 2; its last words: b / c / d",
        ),
        (
            "os.write(int(sys.argv[1]), b'{\"folder'); os._exit(9)",
            "its process exited with code 9",
        ),
    ],
)
def test_a_death_is_a_failure_that_says_how(
    run: Run, capsys: pytest.CaptureFixture[str], script: str, message: str
) -> None:
    result = run(script)
    assert (result.state, result.message) == (State.FAILED, message)
    assert f"job 1/1 (seed=1): failed  {message}" in capsys.readouterr().out


def test_standard_error_is_passed_on_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("sys.stderr.write('50 %\\r'); sys.stderr.write('λ\\n'); result('complete')")
    assert capsys.readouterr().err == "50 %\rλ\n"


def test_the_status_of_a_dead_job_is_set_right(run: Run, tmp_path: Path) -> None:
    write = (
        "from condexp.store.run_folder.status import State, Status, write_status\n"
        "from pathlib import Path\n"
        "write_status(Path(job['folder']), Status(State({state!r}), step=7, pid=os.getpid()))\n"
        "os._exit(3)"
    )
    run(write.format(state="running"))
    status = read_status(tmp_path)
    assert (status.state, status.step) == (State.FAILED, 7)
    assert status.error == "its process exited with code 3"
    assert status.updated
    # It had finished, and only its last word is missing.
    assert run(write.format(state="complete")) == RunResult(tmp_path, State.COMPLETE)
    # Another process's status is not touched.
    write_status(tmp_path, Status(State.RUNNING, pid=1))
    assert run("os._exit(3)").state is State.FAILED
    assert read_status(tmp_path) == Status(State.RUNNING, pid=1)


HEED = "signal.signal(signal.SIGTERM, lambda *_: (result('interrupted', 'x'), os._exit(0)));"


def test_a_request_to_stop_is_passed_on_and_named(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(f"{HEED} live_on()", reason="the sweep was stopped")
    assert (result.state, result.message) == (State.INTERRUPTED, "the sweep was stopped")
    assert "interrupted  the sweep was stopped" in capsys.readouterr().out
    # Before it can heed signals it just ends.
    result = run("live_on()", reason="the sweep was stopped")
    assert (result.state, result.message) == (State.INTERRUPTED, "the sweep was stopped")
    # Stopped by someone else it says so itself.
    result = run(f"{HEED} os.kill(os.getpid(), signal.SIGTERM); live_on()")
    assert (result.state, result.message) == (State.INTERRUPTED, "x")


def test_a_job_out_of_time_is_stopped_then_killed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_process, "KILL_SECONDS", float("inf"))
    monkeypatch.setattr("time.monotonic", Clock(tmp_path, 400))
    result = run(f"{HEED} live_on()", timeout=1000)
    assert (result.state, result.message) == (
        State.INTERRUPTED,
        "stopped after run.timeout=1000 s",
    )
    monkeypatch.setattr(job_process, "KILL_SECONDS", 1000)
    result = run("signal.signal(signal.SIGTERM, signal.SIG_IGN); live_on()", timeout=1000)
    assert result.state is State.INTERRUPTED
    assert "run.timeout" in str(result.message)


def test_a_process_of_the_jobs_own_that_lives_on_holds_up_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_process, "TAIL_SECONDS", 0.1)
    left = (
        f"own = subprocess.Popen(['sleep', '{GUARD_SECONDS}'], pass_fds=[int(sys.argv[1])]);"
        "open(job['folder'] + '/own', 'w').write(str(own.pid));"
    )
    for end, state in {
        "result('complete')": State.COMPLETE,
        "os._exit(3)": State.FAILED,
    }.items():
        assert run(f"{left} {end}").state is state
        own = int((tmp_path / "own").read_text())
        assert lives(own)
        os.kill(own, signal.SIGKILL)


def test_a_long_message_and_a_long_job_pass_the_pipes(run: Run) -> None:
    result = run("result('failed', 4000 * 'x')")
    assert result.message == 4000 * "x"


def test_the_childs_end_of_the_pipe_ends_with_the_parent(tmp_path: Path) -> None:
    """The thread that watches standard input stops its process as SIGTERM would."""
    code = (
        "import signal, sys, threading, time, condexp.runs.sweep.job_main as child\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))\n"
        "threading.Thread(target=child._stop_with_parent, daemon=True).start()\n"
        "print('ready', flush=True)\n"
        f"time.sleep({GUARD_SECONDS})"
    )
    with subprocess.Popen(
        (sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.stdin.close()
        assert child.wait() == 1
    # One that does not heed it, or cannot, is killed after a while.
    deaf = code.replace("lambda *_: sys.exit('stopped')", "signal.SIG_IGN").replace(
        "as child\n", "as child; child.ORPHAN_SECONDS = 0.2\n"
    )
    with subprocess.Popen((sys.executable, "-c", deaf), stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait() == -signal.SIGKILL


def test_nothing_heavy_is_imported_by_a_process_that_waits() -> None:
    heavy = {"torch", "pandas", "h5py", "matplotlib", "xarray"}
    code = f"import sys, condexp.runs.sweep.job; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
