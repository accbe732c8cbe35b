import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from condexp.results.status_view import RunRow, status_table
from condexp.results.tables.numbers import format_seconds
from condexp.store.run_folder.liveness import Liveness
from condexp.store.run_folder.status import State, Status, read_status, read_statuses, write_status
from tests.results.stored import text_of, write_early_failure


def of_process(status: Status, pid: int) -> Status:
    """What a process of this machine says of its run now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(status, pid=pid, host=socket.gethostname(), updated=now)


def test_one_row_a_run_with_what_became_of_it(tmp_path: Path) -> None:
    for index, state in enumerate(State):
        folder = tmp_path / f"run{index}"
        folder.mkdir()
        status = Status(state, step=index, num_steps=10, test_error=12.5, seconds=3661)
        status = of_process(status, os.getpid())
        write_status(folder, status)
    text = text_of(status_table(read_statuses([tmp_path])))
    rows = [line for line in text.splitlines() if "run" in line and "/10" in line]
    for index, state in enumerate(State):
        (row,) = [line for line in rows if f"run{index} " in line]
        assert row.split()[1:] == [state, f"{index}/10", "12.5", "–", "1:01:01"]
    assert "6 runs: 1 pending, 1 running, 1 interrupted, 1 failed, 1 diverged, 1 complete" in text
    assert "error " not in text.replace("test error", "")  # no empty column


def test_a_failure_says_why_and_markup_in_it_is_text(tmp_path: Path) -> None:
    write_early_failure(tmp_path / "run", "RuntimeError: [red]shapes[/red] do not match")
    statuses = read_statuses([tmp_path])
    text = text_of(status_table(statuses))
    assert "RuntimeError: [red]shapes[/red] do not match" in text
    assert [status.state for status in statuses.values()] == [State.FAILED]


def test_a_run_whose_process_died_is_called_what_it_is(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    dead = of_process(Status(State.RUNNING), process.pid)
    for name, status in {
        "dead": replace(dead, updated="2026-01-02T03:04:05+00:00"),
        "early": replace(dead, state=State.PENDING),
        "alive": of_process(dead, os.getpid()),
        "asked": replace(dead, state=State.INTERRUPTED),
    }.items():
        (tmp_path / name).mkdir()
        write_status(tmp_path / name, status)
    text = text_of(status_table(read_statuses([tmp_path])))
    where = f"process {process.pid} on {socket.gethostname()}"
    remark = RunRow(read_status(tmp_path / "dead"), Liveness.DEAD).remark
    assert remark.startswith(f"{where} is gone, last heard of 2026-01-02T03:04:05")
    silent = RunRow(read_status(tmp_path / "dead"), Liveness.SILENT)
    assert (silent.label, silent.remark) == (
        "running (silent)",
        f"no word of {where} since 2026-01-02T03:04:05+00:00",
    )
    assert "4 runs: 1 running, 1 interrupted, 2 interrupted (stale)" in text


def test_a_thousand_runs_take_seconds(tmp_path: Path) -> None:
    for index in range(1000):
        folder = tmp_path / f"grid{index % 10}" / f"resnet-cifar10-s{index}-{index:08x}"
        folder.mkdir(parents=True)
        state = list(State)[index % len(State)]
        error = "RuntimeError: no" if state is State.FAILED else None
        status = Status(state, index, 2000, test_error=5.0, error=error)
        write_status(folder, of_process(status, 2**22 + index))  # no system counts so far
    command = (sys.executable, "-m", "condexp", "status", str(tmp_path))
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    assert done.returncode == 1
    assert "1000 runs: " in done.stdout
    assert done.stdout.count("RuntimeError: no") == 167
    assert seconds < 5, f"{seconds:.1f} s"


def test_seconds() -> None:
    assert format_seconds(83.4) == "0:01:23"
