"""What surrounds a command: signals, files of the user's, disks that are full, odd arguments."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from condexp.cli.main import main, split_verb
from condexp.results.collect import collect
from condexp.runs.stop_signals import Stopped, heeded_signals, stop_requests, stopping_at_once
from condexp.store.csv_text import write_frame
from condexp.store.run_folder.completeness import read_statuses
from condexp.store.run_folder.status import State, Status, find_runs, write_status
from tests.conftest import Command
from tests.results.stored import write_run


def test_a_closed_terminal_stops_a_run_unless_that_is_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert requests.signal is signal.SIGHUP
        with pytest.raises(Stopped) as stopped, stopping_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopped.value.exit_code == 75
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in heeded_signals()
        with stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not requests
    finally:
        signal.signal(signal.SIGHUP, before)


def test_several_stands_anywhere() -> None:
    assert split_verb(["seed=1,2", "-m", "model=mlp"]) == ("run", ["-m", "seed=1,2", "model=mlp"])
    assert split_verb(["-m", "run", "seed=1"]) == ("run", ["-m", "seed=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# @package _global_\nseed:\n\t1\n", "slip.yaml, line 3: found character"),
        ("# @package _global_\nseed: 3\nseed: 4\n", "slip.yaml, line 3: found duplicate key seed"),
        ("# @package _global_\nseed: [1\n", "slip.yaml, line 3: expected"),
        ("\ufeff# @package _global_\nseed: 1\n", "without the byte-order mark"),
        ("seed: 1\n", "slip.yaml, line 1: an experiment begins with '# @package _global_'"),
    ],
)
def test_a_slip_in_a_file_of_the_users_is_one_line(
    condexp: Command, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/slip.yaml").write_text(text, encoding="utf-8")
    code, _, err = condexp("--config-dir", str(tmp_path / "conf"), "experiment=slip")
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trainer.epochs=1000000000000"], "trainer.epochs=1000000000000: it must be at most"),
        (["trainer.epochs=1000000000"], "steps (11 an epoch), and 100000000 are the most"),
        (["dataset.subset.train=1", "model.norm=batch"], "more than 1 value per channel"),
        (["analysis.kappa_p=[0.5,0.5]"], "has 0.5 twice"),
        (["-m", "seed=range(10000)"], "the sweep has 10000 jobs, and 5000 are the most"),
        (["-m", "seed=range(1,1000001)", "model.depth=2,3"], "the sweep has 2000000 jobs"),
    ],
)
def test_numbers_that_no_machine_can_bear(
    condexp: Command, tmp_path: Path, args: list[str], message: str
) -> None:
    code, _, err = condexp("run", *args, f"run.root={tmp_path / 'outputs'}")
    assert code == 2
    assert message in err
    assert not (tmp_path / "outputs").exists()


def test_nothing_but_a_regular_file_is_replaced(condexp: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("fifo", "link"):
        code, _, err = condexp("export", str(run), "--output", str(tmp_path / name))
        assert code == 2
        assert "it is no regular file" in err
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()
    code, _, err = condexp("figure", "overview", str(run), "--output", "/proc/nowhere")
    assert code == 2
    assert "cannot be written" in err


def test_a_full_disk_under_standard_output_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "condexp", "export", str(run)]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert ended.stderr.decode().count("\n") == 1
    assert b"No space left on device" in ended.stderr


@pytest.mark.parametrize("rows", [["--rows", "seed", "--cols", "seed"], ["--rows", ","]])
def test_rows_and_columns_are_keys_and_others(
    condexp: Command, tmp_path: Path, rows: list[str]
) -> None:
    code, _, err = condexp("table", str(write_run(tmp_path / "run")), *rows)
    assert code == 2
    assert "give keys for the rows, and others for the columns" in err


def test_links_are_followed_and_a_copy_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = "2026-01-01T00:00:00+00:00"
    for name, step in (("scratch/a/run", 5), ("outputs/b/run", 6), ("outputs/b/run.bak", 4)):
        folder = write_run(tmp_path / name, seed=1 if name.startswith("scratch") else 2)
        write_status(folder, Status(State.COMPLETE, step=step, num_steps=6, started=started))
    (tmp_path / "outputs/linked").symlink_to(tmp_path / "scratch/a")
    (tmp_path / "outputs/loop").symlink_to(tmp_path / "outputs")
    assert len(find_runs([tmp_path / "outputs"])) == 3
    names = [folder.relative_to(tmp_path) for folder in read_statuses([tmp_path / "outputs"])]
    assert list(map(str, names)) == ["outputs/b/run", "outputs/linked/run"]
    assert "run.bak is a copy of" in caplog.text
    assert sorted(collect(tmp_path / "outputs")["seed"]) == [1, 2]


def test_a_run_of_somebody_else_is_one_line(
    condexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "mine")
    write_run(tmp_path / "theirs", seed=2)
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if "theirs" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    for args in (["status"], ["table", "--rows", "seed"]):
        code, out, err = condexp(args[0], str(tmp_path), *args[1:])
        assert code == 1
        assert "Permission denied" in out + err
        assert ("mine" if args == ["status"] else "30.00 (1)") in out


def test_a_formula_is_a_text(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"text": ["=1+1", "@a", "-1.5", "b"], "number": [-1.0, 2.0, 3.0, 4.0]})
    with (tmp_path / "f.csv").open("w", newline="") as stream:
        write_frame(frame, stream)
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert lines[1:] == ["'=1+1,-1.0", "'@a,2.0", "-1.5,3.0", "b,4.0"]


def test_a_module_of_the_users_named_like_pythons_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.py").write_text("raise SystemExit('not Python')")
    code = "import sys; from condexp.cli.main import main; sys.exit(main(['--help']))"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, stdout=-3)
    monkeypatch.chdir(tmp_path)
    assert main(["model=import", "model.target=types:Net", "run.dry_run=true"]) == 2


def test_the_module_takes_no_file_of_the_users_for_a_librarys(tmp_path: Path) -> None:
    for name in ("numpy", "profile", "random", "xarray"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not Python')")
    for option in ([], ["-P"]):
        command = [sys.executable, *option, "-m", "condexp", "show", "nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("condexp: no run at nowhere")
        # What -m itself imports comes before anything of ours: only -P keeps Python from it.
        (tmp_path / "types.py").write_text("raise SystemExit('not Python')")


@pytest.mark.parametrize("lost", [True, False])
def test_a_run_that_cannot_be_read_is_one_line_and_exit_1(
    condexp: Command, tmp_path: Path, lost: bool
) -> None:
    write_run(tmp_path / "runs/good", seed=2)
    run = write_run(tmp_path / "runs/bad")
    file = run / "results.h5"
    file.unlink() if lost else file.write_bytes(b"no results " * 999)
    for verb in ("show", "export", "validate"):
        code, out, err = condexp(verb, str(run))
        assert code == 1, (verb, err)
        assert len((out + err).splitlines()) == 1
    code, out, err = condexp("table", str(tmp_path / "runs"), "--rows", "seed")
    assert code == 1
    assert "30.00 (1)" in out
    assert len(err.splitlines()) == 1
    assert condexp("show", str(tmp_path / "nowhere"))[0] == 2
    assert condexp("show", str(tmp_path / "runs/good"), "--measure", "spam")[0] == 2
