"""What a launcher is given to run: a job is started or not, with its share of the machine."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from condexp.runs.sweep import job as jobs
from condexp.runs.sweep import job_process
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.job_spec import JobSpec, dump_config
from condexp.store.run_folder.status import State, Status, write_status
from tests import in_process
from tests.runs.sweep.specs import job_spec

# Stands in for condexp.runs.sweep.job_main: its result is what it was given.
ECHO = """
import json, os, sys
job = json.loads(sys.stdin.readline())
seen = {"job": job, "threads": os.environ.get("OMP_NUM_THREADS"), "cwd": os.getcwd()}
content = {"folder": None, "state": STATE, "message": json.dumps(seen), "stored": False}
os.write(int(sys.argv[1]), json.dumps(content).encode())
"""


@pytest.fixture
def composed() -> Iterator[DictConfig]:
    """A job as Hydra composes it, and Hydra's own part where it keeps that."""
    config = deepcopy(in_process.composed("seed=7", "hydra/launcher=local"))
    own = deepcopy(in_process.composed("seed=7"))
    with open_dict(config), open_dict(own):
        config.hydra.job.num = 0
        del own["hydra"]
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    yield own
    HydraConfig.instance().cfg = before


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobTask:
    """Two jobs, of which the first is started here."""
    echo(monkeypatch, State.COMPLETE)
    board, run = tmp_path / "board", tmp_path / "run"
    board.mkdir()
    run.mkdir()
    job = job_spec(run, "1/2 (seed=7)")
    return JobTask(SweepFlags(board), (job, job), folder=tmp_path)


def echo(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    command = (sys.executable, "-c", ECHO.replace("STATE", repr(str(state))))
    monkeypatch.setattr(job_process, "COMMAND", command)


def seen(task: JobTask, composed: DictConfig) -> dict[str, Any]:
    result = task(composed)
    assert result.message is not None
    return dict(json.loads(result.message))


def test_a_job_gets_its_configuration_and_its_share(
    task: JobTask, composed: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "num_cores", lambda: 9)
    for given, expected in {"": "4", "1": "1", "64": "4", "many": "4"}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        told = seen(task, composed)
        assert told["threads"] == expected
    job = told["job"]
    assert job["config"] == "seed: 1\n"
    assert (job["name"], job["draws_bar"]) == ("1/2 (seed=7)", False)
    assert job["argv"] == ["condexp", "-m"]
    assert told["cwd"] == str(task.folder)


@pytest.mark.parametrize(("n_jobs", "expected"), [(-1, "2"), (1, "x"), (64, "2")])
def test_threads_are_divided_by_the_jobs_at_a_time(
    task: JobTask,
    composed: DictConfig,
    monkeypatch: pytest.MonkeyPatch,
    n_jobs: int,
    expected: str,
) -> None:
    monkeypatch.setattr(jobs, "num_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "x")
    launcher = HydraConfig.get().launcher
    with read_write(launcher):
        launcher.n_jobs = n_jobs
    assert seen(task, composed)["threads"] == expected  # of two jobs there are never more than two


def test_a_job_crosses_between_processes_whole(tmp_path: Path) -> None:
    job = job_spec(tmp_path / "ü run", timeout=2.5)
    assert JobSpec.from_json(job.to_json()) == job
    config: dict[str, Any] = {
        "model": {"kwargs": {"z": 1e-5, "a": {1: None}}},
        "run": {"on_existing": "restart"},
    }
    begun = replace(job, config=dump_config(config)).resumed()
    config["run"]["on_existing"] = "resume"
    assert list(yaml.safe_load(begun.config)["model"]["kwargs"]) == ["z", "a"]
    assert yaml.safe_load(begun.config) == config
    assert replace(begun, config=job.config) == job


def test_a_stopped_grid_starts_no_job(task: JobTask, composed: DictConfig) -> None:
    task.flags.stop()
    result = task(composed)
    assert (result.state, result.exit_code) == (State.PENDING, 75)
    assert "the sweep was stopped" in str(result.message)


def test_after_a_failure_only_those_start_that_do_not_mind(
    task: JobTask, composed: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task(composed).state is State.COMPLETE
    assert not task.flags.failed
    echo(monkeypatch, State.FAILED)
    assert task(composed).state is State.FAILED
    result = task(composed)
    assert (result.state, result.exit_code) == (State.PENDING, 75)
    assert "run.fail_fast=true" in str(result.message)
    easy = job_spec(tmp_path / "run", fail_fast=False)
    assert JobTask(task.flags, (easy,))(composed).state is State.FAILED


def test_what_another_process_took_up_since_is_left_alone(
    task: JobTask, composed: DictConfig, tmp_path: Path
) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    host = socket.gethostname()
    write_status(tmp_path / "run", Status(State.RUNNING, pid=os.getpid(), host=host, updated=now))
    result = task(composed)
    assert (result.state, result.exit_code) == (State.RUNNING, 75)
    assert result.message == f"process {os.getpid()} on {host} is at it: left alone"


def test_a_sweep_stops_though_a_cleaner_removed_its_folder(tmp_path: Path) -> None:
    flags = SweepFlags(tmp_path / "tmp" / "condexp-sweep")
    assert not flags.stopped
    flags.stop()
    assert flags.stopped
    assert not flags.failed
    flags.fail()
    assert flags.failed
