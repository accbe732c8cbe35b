import io
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from condexp.cli.main import main
from condexp.results.status_view import RunRow, status_table
from condexp.results.tables.numbers import format_seconds
from condexp.store.run_folder.completeness import read_statuses
from condexp.store.run_folder.liveness import LOCK_NAME, UNFINISHED, Liveness
from condexp.store.run_folder.status import (
    CONFIG_NAME,
    FINISHED,
    STATUS_NAME,
    State,
    Status,
    read_status,
    write_status,
)
from condexp.store.schema.layout import FILE_NAME
from tests.results.stored import text_of, write_early_failure
from tests.results.stored import write_run as write_stored
from tests.store.records import few_columns, write_run


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
        if state in FINISHED:
            write_run(folder / FILE_NAME, few_columns())
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


def test_the_command_opens_each_status_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        tmp_path / f"grid{index % 10}" / f"resnet-cifar10-s{index}-{index:08x}"
        for index in range(60)
    ]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        state = list(State)[index % len(State)]
        error = "RuntimeError: no" if state is State.FAILED else None
        status = Status(state, index, 2000, test_error=5.0, error=error)
        write_status(folder, of_process(status, 2**22 + index))  # no system counts so far
        (folder / FILE_NAME).write_bytes(b"not to be opened, but of a finished run")
    touched: Counter[str] = Counter()

    def counted(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            touched[str(path)] += 1
            return genuine(path, *arguments, **options)

        return call

    for module, name in ((io, "open"), (os, "open"), (os, "scandir")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    assert main(["status", str(tmp_path)]) == 1
    monkeypatch.undo()
    out = capsys.readouterr().out
    assert "60 runs: " in out
    assert "complete, but" in " ".join(out.split())
    assert out.count("RuntimeError: no") == 10
    here = {path: times for path, times in touched.items() if path.startswith(str(tmp_path))}
    listed = [tmp_path, *{folder.parent for folder in folders}, *folders]
    read = [folder / name for folder in folders for name in (STATUS_NAME, CONFIG_NAME)]
    # Only where a process is gone does its lock say more than its status: that of the file, or,
    # where there is none, of the folder.
    unfinished = [folder for folder in folders if read_status(folder).state in UNFINISHED]
    locks = [folder / LOCK_NAME for folder in unfinished]
    # Results that are said to be whole are looked at: their end; where that is none, by HDF5.
    whole = [folder / FILE_NAME for folder in folders if read_status(folder).state in FINISHED]
    expected = Counter(map(str, (*listed, *read, *locks, *unfinished, *whole, *whole)))
    assert here == expected


def test_runs_tell_how_they_differ(tmp_path: Path) -> None:
    for seed in (1, 2):
        for depth in (8, 14):
            write_stored(tmp_path / f"{depth}-{seed}", seed=seed, model__depth=depth)
    text = text_of(status_table(read_statuses([tmp_path])))
    assert "differs in" in text
    for seed in (1, 2):
        assert f"model.depth=14 seed={seed}" in text or f"seed={seed} model.depth=14" in text
    alone = text_of(status_table(read_statuses([tmp_path / "8-1"])))
    assert "differs in" not in alone
    (tmp_path / "8-1" / CONFIG_NAME).write_text("model: [")  # hides no other
    assert "model.depth=14" in text_of(status_table(read_statuses([tmp_path])))


def test_seconds() -> None:
    assert format_seconds(83.4) == "0:01:23"
