"""What to do with each job of a sweep is known before any starts, and nothing is written."""

import os
import socket
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus

from condexp.config import Config
from condexp.errors import InputError
from condexp.runs.prepare import PreparedRun
from condexp.runs.prepare import prepare as prepare_really
from condexp.runs.result import RunResult
from condexp.runs.sweep import plan as sweep_plan
from condexp.runs.sweep.execute import run_sweep
from condexp.runs.sweep.job import JobTask
from condexp.runs.sweep.plan import (
    JobAction,
    PlannedJob,
    SweepPlanner,
    common_settings,
    own_settings,
    plan_sweep,
)
from condexp.runs.sweep.report import plan_table, result_table
from condexp.store.disk import locked
from condexp.store.run_folder.liveness import Liveness
from condexp.store.run_folder.status import State, Status, write_status
from condexp.store.schema.layout import FILE_NAME
from tests.in_process import composed, validated
from tests.results.stored import text_of

TINY = ["model.depth=2", "model.width=8", "trainer.steps=10", "dataset.subset.train=60",
        "dataset.subset.test=20", "trainer.batch_size=20"]  # fmt: skip


def plan(root: Path, *jobs: Sequence[str]) -> tuple[PlannedJob, ...]:
    configs = [deepcopy(composed(*TINY, *job)) for job in jobs]
    for config in configs:
        config.run.root = str(root)
    return plan_sweep([[*TINY, *job, f"run.root={root}"] for job in jobs], configs)


def leave(job: PlannedJob, status: Status) -> None:
    """Leave a run folder as an earlier call did."""
    job.folder.mkdir(parents=True, exist_ok=True)
    said = datetime.now(UTC).isoformat(timespec="seconds")
    status = replace(status, num_steps=10, host=socket.gethostname(), updated=said)
    write_status(job.folder, status)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete runs need no results file here."""
    monkeypatch.setattr("condexp.runs.execute.missing_results", lambda *_: None)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("status", "todo", "state"),
    [
        (Status(State.COMPLETE), JobAction.SHOW, State.COMPLETE),
        (Status(State.DIVERGED), JobAction.SHOW, State.DIVERGED),
        (Status(State.INTERRUPTED, attempts=9), JobAction.RESUME, None),
        (Status(State.RUNNING, pid=2**22 + 1, attempts=9), JobAction.RESUME, None),
        (Status(State.PENDING, pid=2**22 + 1), JobAction.RESUME, None),
        (Status(State.RUNNING, pid=os.getpid()), JobAction.LEAVE, State.RUNNING),
        (Status(State.FAILED, attempts=2, error="no"), JobAction.RETRY, None),
        (Status(State.FAILED, attempts=3, error="no"), JobAction.GIVE_UP, State.FAILED),
        (Status(State.FAILED, attempts=7, error="no"), JobAction.GIVE_UP, State.FAILED),
    ],
    ids=lambda value: f"{value.state} {value.attempts}" if isinstance(value, Status) else "",
)
def test_what_an_earlier_call_left_decides(
    tmp_path: Path, status: Status, todo: JobAction, state: State | None
) -> None:
    (job,) = plan(tmp_path, [])
    assert (job.todo, job.result) == (JobAction.RUN, None)
    leave(job, status)
    (again,) = plan(tmp_path, [])
    assert again.todo is todo
    assert (again.result and again.result.state) == state
    assert (again.cost is None) == (state is not None)
    (anew,) = plan(tmp_path, ["run.on_existing=restart"])
    assert anew.todo is (JobAction.LEAVE if todo is JobAction.LEAVE else JobAction.RESTART)
    with pytest.raises(InputError, match="exists already"):
        plan(tmp_path, ["run.on_existing=fail"])


def test_the_way_out_is_said(tmp_path: Path) -> None:
    (job,) = plan(tmp_path, [])
    leave(job, Status(State.FAILED, attempts=3, error="RuntimeError: no"))
    (again,) = plan(tmp_path, [])
    assert again.result is not None
    assert again.result.message == (
        "failed 3 times, and run.max_attempts=3: RuntimeError: no (run.max_attempts=4 tries again, "
        "run.on_existing=restart runs it anew)"
    )
    assert plan(tmp_path, ["run.max_attempts=4"])[0].todo is JobAction.RETRY


def test_a_held_lock_and_a_silent_process_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(tmp_path, [])
    leave(job, Status(State.RUNNING, pid=2**22 + 1))
    with locked(job.folder / FILE_NAME):
        (held,) = plan(tmp_path, [])
    assert held.todo is JobAction.LEAVE
    monkeypatch.setattr(sweep_plan, "liveness_of", lambda *_: Liveness.SILENT)
    (silent,) = plan(tmp_path, [])
    assert silent.todo is JobAction.LEAVE
    assert "remove status.json" in str(silent.result and silent.result.message)
    assert plan(tmp_path, ["run.on_existing=restart"])[0].todo is JobAction.RESTART


def test_the_same_job_is_run_once(tmp_path: Path) -> None:
    # Threads decide no number.
    jobs = plan(tmp_path, ["seed=1"], ["seed=2"], ["seed=1", "trainer.num_threads=1"])
    assert [job.todo for job in jobs] == [JobAction.RUN, JobAction.RUN, JobAction.REPEATED]
    assert [job.original for job in jobs] == [None, None, 0]


def test_jobs_that_differ_in_the_seed_alone_are_prepared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    def prepare(config: Config) -> PreparedRun:
        prepared.append((config.plain["model"]["depth"], config.seed))
        return prepare_really(config)

    monkeypatch.setattr(sweep_plan, "prepare", prepare)
    seeds = [f"seed={seed}" for seed in range(1, 4)]
    plan(tmp_path, *([seed, f"model.depth={depth}"] for depth in (2, 3) for seed in seeds))
    assert prepared == [(2, 1), (3, 1)]


def test_one_job_that_cannot_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"job 2 of 2 \(.*optimizer.nesterov=true.*Nothing was"):
        plan(tmp_path, ["seed=1"], ["seed=2", "optimizer.nesterov=true"])
    with pytest.raises(InputError, match="the sweep is empty"):
        plan(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_users_module_that_exits_is_no_end_of_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quitter.py").write_text("import sys; sys.exit('no licence')")
    mine = ["model=import", "model.target=quitter:Net"]
    with pytest.raises(InputError, match=r"no licence \(.*quitter.py, line 1\)\. Nothing was run"):
        plan_sweep([mine], [deepcopy(composed(*mine))])


@pytest.mark.usefixtures("stored")
def test_time_and_disk_are_estimated_from_finished_relatives(tmp_path: Path) -> None:
    sweep = [["seed=1"], ["seed=2"], ["seed=3"], ["seed=4"], ["seed=1", "model.depth=3"]]
    jobs = plan(tmp_path, *sweep)
    assert all(job.cost is not None and job.cost.seconds is None for job in jobs)
    assert "time unknown" in text_of(plan_table(jobs))
    leave(jobs[0], Status(State.COMPLETE, step=10, seconds=100))
    leave(jobs[1], Status(State.COMPLETE, step=10, seconds=200))
    leave(jobs[2], Status(State.INTERRUPTED, step=4, seconds=60))
    _, _, third, fourth, other = plan(tmp_path, *sweep)
    assert third.cost is not None
    assert fourth.cost is not None
    assert other.cost is not None
    assert (third.cost.steps_left, third.cost.num_steps) == (6, 10)
    assert third.cost.seconds == pytest.approx(0.6 * 150)
    assert fourth.cost.seconds == 150
    assert other.cost.seconds is None
    # Two layers and two of momentum's kind: (64·8 + 8·10 weights, biases none or few) · 4 bytes.
    assert fourth.cost.num_bytes > 2 * 4 * (64 * 8 + 8 * 10)
    shown = text_of(plan_table(plan(tmp_path, *sweep)))
    assert "2 to run, 1 to resume, 2 stored already" in shown
    assert "0:04:00 one after another for 2 of 3, the others unknown" in shown
    assert "6 of 10" in shown


def test_the_table_tells_each_job_by_what_is_its_own(tmp_path: Path) -> None:
    jobs = plan(tmp_path, ["model.depth=2", "seed=1"], ["model.depth=2", "seed=2"])
    assert own_settings(jobs) == ["seed=1", "seed=2"]
    assert common_settings(jobs).split() == [*TINY, "model.depth=2", f"run.root={tmp_path}"]
    failed = RunResult(None, State.FAILED, "[red]no[/red]")
    shown = text_of(result_table(jobs, [RunResult(tmp_path, State.COMPLETE, stored=True), failed]))
    assert "complete (stored)" in shown
    assert "[red]no[/red]" in shown
    assert "1 complete, 1 failed" in shown


def test_one_job_alone(tmp_path: Path) -> None:
    planner = SweepPlanner()
    config = validated(*TINY, root=tmp_path)
    planner.add(TINY, config)
    assert own_settings(planner.jobs) == [" ".join(TINY)]
    assert common_settings(planner.jobs) == ""
    assert "1 job; nothing is run" in text_of(plan_table(planner.jobs))


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("cancelled", [False, True])
def test_what_ran_elsewhere_is_shown_if_it_is_complete_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cancelled: bool
) -> None:
    (elsewhere,) = plan(tmp_path, ["seed=1"])
    leave(elsewhere, Status(State.RUNNING, pid=os.getpid()))
    jobs = plan(tmp_path, ["seed=1"], ["seed=2"])

    def launch(task: JobTask, overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        leave(elsewhere, Status(State.COMPLETE))
        state = State.INTERRUPTED if cancelled else State.COMPLETE
        result = RunResult(task.jobs[0].folder, state, cancelled=cancelled)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=result)] * len(overrides)

    assert run_sweep(jobs, launch) == int(cancelled)
    out = capsys.readouterr().out
    assert ("1 complete, 1 cancelled" if cancelled else "2 complete") in out


def test_a_launcher_that_cannot_begin_is_bad_input(tmp_path: Path) -> None:
    def launch(task: JobTask, overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        raise InputError("no such partition")

    with pytest.raises(InputError, match="no such partition"):
        run_sweep(plan(tmp_path, ["seed=1"]), launch)
