"""Runs of several processes: stopped, robbed of a process, started by others, refused."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condexp.errors import InputError
from condexp.runs.checks import refuse_several_sweeps
from condexp.runs.prepare import prepare
from condexp.runs.stop_signals import Stopped
from condexp.runs.workers import group
from condexp.store.reader import open_run
from condexp.store.run_folder.identity import run_folder
from condexp.store.run_folder.status import State, read_status
from condexp.training.distributed.environment import DistributedEnv, first_host
from condexp.training.events import StepRecord
from tests.in_process import contents, run, validated
from tests.observer import Silent
from tests.waiting import GUARD_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_STEP_NODELIST": "gpu[07-10]",
    "SLURM_JOB_ID": "40017",
}
TWO = [
    "trainer.num_processes=2",
    "trainer.sync_batchnorm=true",
    "trainer.num_threads=1",
    "model=import",
    "model.target=tests.dropout_net:build",  # each process draws masks of its own
    "trainer.steps=9",
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "analysis.schedule.every_steps=2",
    "trainer.checkpoint.every_steps=4",
]


@pytest.fixture(autouse=True)
def time_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than a user would wait, and ends no run of a test for it."""
    monkeypatch.setattr(group, "GRACE_SECONDS", GUARD_SECONDS)
    monkeypatch.setattr(group, "END_SECONDS", GUARD_SECONDS)


class Others(list[int]):
    """The other ranks that runs start, and how long their ends were waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.signal: signal.Signals | None = None  # which they get as soon as they exist
        self.waits: list[float | None] = []


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    others = Others()

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, command: Sequence[str], **options: Any) -> None:
            super().__init__(command, **options)
            self.is_rank = tuple(command[: len(group.COMMAND)]) == group.COMMAND  # git is none
            if self.is_rank:
                others.append(self.pid)
            if self.is_rank and others.signal is not None:
                self.send_signal(others.signal)

        def wait(self, timeout: float | None = None) -> int:
            if self.is_rank:
                others.waits.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return others


class Killer(Silent):
    """Sends a signal to a process after a step."""

    def __init__(self, at: int, pids: list[int], number: signal.Signals) -> None:
        super().__init__()
        self.at, self.pids, self.number = at, pids, number

    def on_step(self, record: StepRecord, /) -> None:
        super().on_step(record)
        if record.step == self.at:
            os.kill(self.pids[-1], self.number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What an uninterrupted run leaves."""
    result = run(tmp_path_factory.mktemp("whole"), *TWO)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    return contents(result.folder)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, whole: list[bytes]) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, *TWO, observer=Killer(5, [os.getpid()], signal.SIGTERM))
    result = run(tmp_path, *TWO)
    assert result.state is State.COMPLETE
    assert result.folder is not None
    assert contents(result.folder) == whole
    assert run(tmp_path, *TWO).stored


def test_a_run_that_lost_a_process_fails_at_once_and_goes_on(
    tmp_path: Path, whole: list[bytes], others: Others
) -> None:
    killer = Killer(6, others, signal.SIGKILL)
    lost = run(tmp_path, *TWO, observer=killer)
    assert set(others.waits) <= {0, None}  # None: for one that was killed
    assert lost.exit_code == 1
    assert lost.message == "process 1 of the run's 2 ended: killed by SIGKILL"
    assert lost.folder is not None
    status = read_status(lost.folder)
    assert (status.state, status.error) == (State.FAILED, lost.message)
    result = run(tmp_path, *TWO)
    assert result.state is State.COMPLETE
    assert contents(lost.folder) == whole


def test_an_error_of_all_processes_is_told_as_it_is(tmp_path: Path) -> None:
    result = run(tmp_path, *TWO, "model.target=tests.dropout_net:Failing")
    assert result.state is State.FAILED
    assert result.message is not None
    assert re.fullmatch(r"ValueError: enough \(.*dropout_net.py, line \d+\)", result.message)


def test_a_process_that_cannot_notice_is_ended(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys, time
from condexp.runs.workers import group as module
module.GRACE_SECONDS = 0.1
workers = module.WorkerGroup.__new__(module.WorkerGroup)
import threading
workers._finished, workers._worker_died = threading.Event(), threading.Event()
workers._workers = [subprocess.Popen([sys.executable, "-c", "import os; os.abort()"])]
def note(death):
    open({str(tmp_path / "death")!r}, "w").write(death)
threading.Thread(target=workers._watch, args=(note,), daemon=True).start()
time.sleep({GUARD_SECONDS})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 1
    said = (tmp_path / "death").read_text()
    assert said == "process 1 of the run's 2 ended: killed by SIGABRT"


def test_the_rank_is_read_from_the_environment() -> None:
    env = DistributedEnv.from_environ(TORCHRUN)
    assert env is not None
    assert (env.rank, env.world_size, env.local_rank, env.local_world_size) == (3, 4, 1, 2)
    assert (env.address, env.port, env.starter) == ("node1", 29500, "torchrun")
    env = DistributedEnv.from_environ(SRUN)
    assert env is not None
    assert (env.rank, env.world_size, env.local_rank, env.local_world_size) == (3, 4, 0, 1)
    assert (env.address, env.port, env.starter) == ("gpu07", 20017, "srun")
    for alone in ({}, TORCHRUN | {"WORLD_SIZE": "1"}, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}):
        assert DistributedEnv.from_environ(alone) is None
    assert first_host("a[1,3-5]-ib") == "a1-ib"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.batch_size=11"], r"11 samples.*trainer\.batch_size=10 or 12"),
        (["trainer.batch_size=2"], r"2 samples each at least: use trainer\.batch_size=4"),
        (["trainer.batch_size=full", "dataset.subset.train=41"], r"=40 or 42"),
        (
            ["model.target=tests.dropout_net:Idle"],
            r"idle\.weight, idle\.bias get no gradient.*num_processes=1",
        ),
        (
            ["model.target=tests.dropout_net:plain_norm"],
            r"trainer\.sync_batchnorm: 2 has no affine map",
        ),
        (["trainer.compile=true"], r"trainer\.compile=true does not work with"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(validated(*TWO, *overrides, root=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_failure_of_rank_0_alone_waits_for_nobody(tmp_path: Path, others: Others) -> None:
    class Failing(Silent):
        def on_step(self, record: StepRecord, /) -> None:
            if record.step == 3:
                raise OSError("no space left")

    failed = run(tmp_path, *TWO, observer=Failing())
    assert failed.message == "no space left"
    assert others.waits
    assert set(others.waits) <= {0, None}  # None: for one that was killed


def test_a_signal_to_the_others_while_they_start_is_rank_0s_to_heed(
    tmp_path: Path, others: Others, whole: list[bytes]
) -> None:
    others.signal = signal.SIGUSR2  # as early as can be: its interpreter does not run yet
    result = run(tmp_path, *TWO)
    assert len(others) == 1
    assert result.folder is not None
    assert contents(result.folder) == whole


def test_one_gpu_a_task_is_enough_under_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    env = DistributedEnv.from_environ(
        SRUN | {"SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "4"}
    )
    assert env is not None
    assert env.num_sharing_cores == 1
    for num_visible, index in ((1, 0), (4, 2)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=num_visible: n)
        assert env.device(torch.device("cuda")) == torch.device("cuda", index)
    assert env.device(torch.device("cpu")) == torch.device("cpu")


def test_float64_snapshots_of_two_processes_leave_the_training_alone(
    tmp_path: Path,
) -> None:
    """An extra pass of each on its own part of the batch, with statistics over all parts."""
    states, of_runs = [], []
    for precision in ("float64", "as_trained"):
        result = run(tmp_path, *TWO, f"analysis.network_precision={precision}")
        assert result.state is State.COMPLETE
        assert result.folder is not None
        states.append(torch.load(result.folder / "checkpoint.pt", weights_only=True)["model"])
        of_runs.append(open_run(result.folder).measures())
    exact, trained = states
    assert exact.keys() == trained.keys()
    assert all(torch.equal(exact[name], trained[name]) for name in exact)
    for name in ("input_trace", "grad_output_trace", "grad_norm", "effective_lr"):
        one, other = (measures[name] for measures in of_runs)
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_keys_of_several_processes_name_no_run_of_one() -> None:
    folders = {
        run_folder(validated(f"trainer.{key}").plain)
        for key in ("num_processes=1", "sync_batchnorm=true")
    }
    assert len(folders) == 1
    two = [
        run_folder(validated("trainer.num_processes=2", *more).plain)
        for more in ([], ["trainer.sync_batchnorm=true"])
    ]
    assert len({*folders, *two}) == 3


def test_a_grid_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several_sweeps()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun started 4 processes, and each would run the"):
        refuse_several_sweeps()


def test_processes_that_were_started_have_to_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"torchrun started 4 .* give trainer\.num_processes=4"):
        prepare(validated(*TWO, root=tmp_path))


@pytest.mark.slow  # three interpreters
def test_torchrun_gives_the_same_bytes(tmp_path: Path, whole: list[bytes]) -> None:
    command = (
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "condexp", "run"),
    )
    for _ in range(2):  # the second time all is stored
        whole_command = [*command, *TWO, f"run.root={tmp_path}"]
        done = subprocess.run(whole_command, check=False, timeout=GUARD_SECONDS, cwd=ROOT)
        assert done.returncode == 0
    (folder,) = (tmp_path / "default").iterdir()
    assert contents(folder) == whole


def free_port() -> int:
    """A port outside of the range that the system takes from for whoever asks for any."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.mark.slow  # two interpreters, twice
def test_a_signal_to_any_of_torchruns_processes_stops_all(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    held, target = tmp_path / "held", "model.target=tests.dropout_net:Held"
    command = [sys.executable, "-m", "condexp", "run", *TWO, target, f"run.root={tmp_path}"]
    held.mkdir()

    def start(**more: str) -> list[subprocess.Popen[bytes]]:
        places = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
        return [
            subprocess.Popen(command, cwd=ROOT, env=environment | place | more) for place in places
        ]

    ranks = start(HELD=str(held))
    wait_until(lambda: len([*held.iterdir()]) == 2 or any(rank.poll() for rank in ranks))
    ranks[1].send_signal(signal.SIGTERM)
    assert [rank.wait(GUARD_SECONDS) for rank in ranks] == [75, 0]
    (run_of_two,) = (tmp_path / "default").iterdir()
    assert read_status(run_of_two).state is State.INTERRUPTED
    assert [rank.wait(GUARD_SECONDS) for rank in start()] == [0, 0]
    assert read_status(run_of_two).state is State.COMPLETE
