"""The command's side of a sweep on Slurm, with files and scripts in Slurm's place."""

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condexp.cli.main import main
from condexp.errors import InputError
from condexp.runs.result import RunResult
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.slurm import watch as slurm_watch
from condexp.runs.sweep.slurm.options import SlurmOptions, slurm_options
from condexp.runs.sweep.slurm.submit import run_on_slurm
from condexp.runs.sweep.slurm.watch import read_queue
from condexp.store.run_folder.status import State, Status, read_status, write_status
from tests.runs.sweep.specs import job_spec

FOLDER = {"submitit_folder": "x"}


@pytest.fixture
def sweep(tmp_path: Path) -> JobTask:
    (tmp_path / "board").mkdir()
    runs = tmp_path / "default"
    jobs = [job_spec(runs / f"run{n}", f"{n}/3 (seed={n})", fail_fast=False) for n in (1, 2, 3)]
    for job in jobs:
        job.folder.mkdir(parents=True)
    return JobTask(SweepFlags(tmp_path / "board"), tuple(jobs), folder=tmp_path)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Slurm's commands; what is given is what squeue prints from now on, and what happens then."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "sbatch": f"cp $1 {tmp_path}/batch.sh; echo x >> {tmp_path}/batches; echo batch job 7",
        "squeue": f"cat {tmp_path}/queue; . {tmp_path}/then",
        "srun": "true",
    }
    for name, script in scripts.items():
        path = programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(slurm_watch, "ASK_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(slurm_watch, "LOST_SECONDS", 0.05)

    def queue(text: str, then: str = "true") -> None:
        (tmp_path / "queue").write_text(text.replace(" ", "\n"))
        (tmp_path / "then").write_text(then)

    queue("")
    return queue


@pytest.fixture
def submit(sweep: JobTask, tmp_path: Path) -> Callable[..., list[RunResult]]:
    options = SlurmOptions(str(tmp_path / "submitit"), cpus_per_task=2, mem_gb=0.5)

    def start(**changes: Any) -> list[RunResult]:
        return run_on_slurm(sweep, sweep.jobs, replace(options, **changes))

    return start


def put(folder: Path, number: str, outcome: str, value: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{number}_0_result.pkl").write_bytes(pickle.dumps((outcome, value)))


def test_how_each_job_ended(
    sweep: JobTask,
    cluster: Callable[..., None],
    submit: Callable[..., list[RunResult]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "submitit"
    done = RunResult(sweep.jobs[0].folder, State.COMPLETE)
    put(folder, "7_0", "success", done)
    cluster("7_1|CANCELLED 7_2|OUT_OF_MEMORY")
    (folder / "7_2_0_log.out").write_text("a\nb\nc\noom-killer\n")
    for job in sweep.jobs[1:]:
        write_status(job.folder, Status(State.RUNNING, step=3, pid=1, host="elsewhere"))
    results = submit()
    assert results[0] == done
    assert (results[1].state, results[1].cancelled, results[1].exit_code) == (
        State.INTERRUPTED,
        True,
        1,
    )
    assert results[1].message == "Slurm's job 7_1: cancelled; the same command resumes it"
    assert (results[2].state, results[2].exit_code) == (State.FAILED, 1)
    assert "job 7_2: out of memory; its last words: b / c / oom-killer (log: " in str(
        results[2].message
    )
    assert [read_status(job.folder).state for job in sweep.jobs[1:]] == [
        State.INTERRUPTED,
        State.FAILED,
    ]
    assert read_status(sweep.jobs[1].folder).step == 3
    out = capsys.readouterr().out
    assert "3 jobs in Slurm's queue: 7_0 to 7_2" in out
    assert "job 2/3 (seed=2): cancelled  Slurm's job 7_1" in out
    batch = (tmp_path / "batch.sh").read_text()
    for line in (
        "#SBATCH --array=0-2%3",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=512MB",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --time=60",
        "export SRUN_CPUS_PER_TASK=2",
    ):
        assert f"\n{line}\n" in batch


def test_a_job_that_left_no_word_and_one_that_could_not_begin(
    sweep: JobTask,
    cluster: Callable[..., None],
    submit: Callable[..., list[RunResult]],
    tmp_path: Path,
) -> None:
    put(tmp_path / "submitit", "7_0", "error", "Traceback\nModuleNotFoundError: no torch\n")
    write_status(sweep.jobs[2].folder, Status(State.COMPLETE))
    lost = submit()
    assert lost[0].state is State.FAILED
    assert lost[0].message == "Slurm's job 7_0: ModuleNotFoundError: no torch"
    assert lost[1].state is State.FAILED
    assert "gone from the queue without a result; there is no log" in str(lost[1].message)
    assert lost[2].state is State.COMPLETE  # all was done but its last word


def test_waiting_ends_with_the_grid_and_a_second_call_submits_none_twice(
    sweep: JobTask,
    cluster: Callable[..., None],
    submit: Callable[..., list[RunResult]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = "7_0|RUNNING 7_1|PENDING 7_2|COMPLETING"
    cluster(states, f"touch {sweep.flags.folder}/stop")
    results = submit()
    assert [result.state for result in results] == [State.RUNNING, State.PENDING, State.PENDING]
    assert results[1].message == "Slurm's job 7_1 is in the queue"
    assert {result.exit_code for result in results} == {75}
    assert "left to Slurm: 7_0, 7_1, 7_2" in capsys.readouterr().out
    (sweep.flags.folder / "stop").unlink()
    # They end after the question that finds them in the queue.
    ended, asked = tmp_path / "ended", tmp_path / "asked"
    for number, job in enumerate(sweep.jobs):
        put(ended, f"7_{number}", "success", RunResult(job.folder, State.COMPLETE))
    cluster(states, f"[ ! -e {asked} ] || mv {ended}/* {tmp_path}/submitit; touch {asked}")
    assert {result.state for result in submit()} == {State.COMPLETE}
    assert "job 2/3 (seed=2): in the queue already, as Slurm's job 7_1" in capsys.readouterr().out
    assert (tmp_path / "batches").read_text() == "x\n"
    # What has left its result, or is out of the queue, is submitted anew.
    cluster("7_0|COMPLETING 7_1|CANCELLED")
    submit()
    assert (tmp_path / "batches").read_text() == "x\nx\n"
    # A job that an earlier version left in the queue cannot start any more.
    (tmp_path / "submitit" / "submitted").rename(tmp_path / "submitit" / "queued")
    cluster("7_0|PENDING 7_1|CANCELLED 7_2|CANCELLED")
    (tmp_path / "submitit" / "7_0_0_result.pkl").unlink()
    with pytest.raises(InputError, match=r"an earlier condexp submitted \(7_0\).*scancel"):
        submit()
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(InputError, match="squeue does not answer"):
        submit()
    assert (tmp_path / "batches").read_text() == "x\nx\n"


def test_slurm_may_refuse_or_be_away(
    cluster: Callable[..., None], submit: Callable[..., list[RunResult]], tmp_path: Path
) -> None:
    cluster("12_3|RUNNING 13|PENDING 14_[5|")
    assert read_queue() == {"12_3": "RUNNING", "13": "PENDING"}
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert read_queue() is None
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2; exit 1\n"
    )
    with pytest.raises(
        InputError, match=r"Slurm refused the jobs: .*invalid partition specified: x"
    ):
        submit(partition="x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"timeout_mins": 3},
            "unknown key hydra.launcher.timeout_mins.*Did you mean 'timeout_min'",
        ),
        ({"timeout_min": "long"}, "hydra.launcher.timeout_min=long: "),
        ({"timeout_min": 0}, "hydra.launcher.timeout_min=0: allowed is 1 or more"),
        ({"timeout_min": 2, "signal_delay_s": 120}, "allowed is 1 to 119"),
        ({"max_num_timeout": -1}, "hydra.launcher.max_num_timeout=-1"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        slurm_options(FOLDER | given)


def test_options_have_their_types() -> None:
    options = slurm_options(FOLDER | {"mem_gb": 4, "setup": ["a"], "partition": "gpu"})
    assert (options.mem_gb, options.setup, options.partition) == (4.0, ["a"], "gpu")
    assert options.requests()["partition"] == "gpu"
    assert "qos" not in options.requests()
    assert 0 < options.grace_seconds < options.signal_delay_s


def test_without_slurm_the_command_says_so_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "condexp.runs.sweep.slurm.job", raising=False)
    sweep = ["-m", "seed=1,2", "hydra/launcher=slurm", "trainer.steps=3"]
    assert main(sweep) == 2
    assert "needs Slurm's commands" in capsys.readouterr().err
    assert main([*sweep, "hydra.launcher.timeout_mins=3"]) == 2
    assert "unknown key 'hydra.launcher.timeout_mins': condexp run" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(sweep) == 2
    assert "pip install 'condexp[slurm]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
