"""Slurm for real: time limits, a preemption, a cancelled job, and a command that is given again.

The pace of a run is a file's, not its configuration's: who waits trains the same numbers.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from condexp.cli.main import main
from tests import waiting
from tests.waiting import GUARD_SECONDS

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("slurm")]
MODEL = """
import time
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, num_outputs, name="quick"):
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.fc = nn.Linear(64, num_outputs)
        self.pace = Path("pace", name)

    def forward(self, images):
        if self.training and images.device.type != "meta" and self.pace.exists():
            time.sleep(0.5)
        return self.fc(self.norm(images.flatten(1)))
"""
TINY = [
    "model=import",
    "model.target=paced:Net",
    "trainer.epochs=100",  # 300 steps
    "trainer.num_threads=1",
    "trainer.checkpoint.every_epochs=null",  # the signals' checkpoints alone
    "dataset.subset.train=60",
    "dataset.subset.test=20",
    "trainer.batch_size=20",
    "analysis.schedule.log_spaced=4",
]
# A job has a core; Slurm tells it 30 to 60 s after its start that its two minutes are over.
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.timeout_min=2",
    "hydra.launcher.signal_delay_s=60",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
]
NAMES = ["preempted", "cancelled", "a", "b", "slow", "c", "d", "e"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with ``paced.py``, for runs and all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "paced.py").write_text(MODEL)
    (tmp_path / "pace").mkdir()
    yield tmp_path
    sys.modules.pop("paced", None)


@contextmanager
def sweep(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A sweep on Slurm; its process alone, not its jobs, ends with this."""
    command = [sys.executable, "-m", "condexp", "run", "-m", *TINY, *SLURM, *arguments]
    with subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=GUARD_SECONDS
    )
    return done.stdout


def wait_until(what: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    """Wait for something that a sweep's jobs do, while its command goes on."""
    waiting.wait_until(lambda: what() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]


def status(name: str, root: str = "outputs") -> dict[str, Any]:
    """What a run says of itself; nothing where it has not begun."""
    for path in Path(root, "default").glob("*/config.yaml"):
        if f"name: {name}\n" in path.read_text():
            return dict(json.loads((path.parent / "status.json").read_text()))
    return {"state": None, "step": 0}


def trains(name: str) -> bool:
    return status(name)["state"] == "running" and bool(status(name)["step"])


def number_of(name: str) -> str:
    """Slurm's number of a job."""
    for file in Path("outputs/.submitit/submitted").iterdir():
        config = Path("outputs/default", file.name.rpartition("-")[0], "config.yaml")
        if config.exists() and f"name: {name}\n" in config.read_text():
            return file.read_text()
    raise AssertionError(f"{name} was not submitted")


def log_of(number: str) -> str:
    return Path(f"outputs/.submitit/{number}_0_log.out").read_text()


def requeues(name: str) -> int:
    return log_of(number_of(name)).count("Requeued job")


def check_same(root: Path, expected: Path) -> None:
    """Every run under a root, to the byte."""
    runs = sorted(expected.glob("default/*/results.h5"))
    assert runs
    for path in runs:
        mine = root / path.relative_to(expected)
        assert mine.read_bytes() == path.read_bytes(), mine
        weights, others = (
            torch.load(file.parent / "checkpoint.pt", weights_only=True)["model"]
            for file in (mine, path)
        )
        assert all(torch.equal(weights[key], others[key]) for key in others)


def test_a_grid_of_eight_through_limits_a_preemption_and_a_scancel(
    folder: Path, slurm: Path
) -> None:
    for name in ("preempted", "cancelled", "slow"):
        (folder / "pace" / name).touch()
    overrides = f"model.kwargs.name={','.join(NAMES)}"
    with sweep(overrides) as process:
        wait_until(lambda: trains("preempted") and trains("cancelled"), process)
        # A job of more right to the node takes both cores.
        high = ("sbatch", "--partition=high", "--ntasks=2", "--mem=100", "--output=/dev/null")
        say(*high, "--wrap=true")
        preempted, cancelled = number_of("preempted"), number_of("cancelled")
        wait_until(lambda: requeues("preempted") and requeues("cancelled"), process)
        told = (slurm / "slurmctld.log").read_text()
        assert f"preemption grace time for JobId={preempted}" in told
        (folder / "pace" / "preempted").unlink()
        wait_until(lambda: trains("cancelled"), process)
        say("scancel", cancelled)
        wait_until(lambda: status("cancelled")["state"] == "interrupted", process)
        (folder / "pace" / "cancelled").unlink()
        wait_until(lambda: status("slow")["step"], process)
        wait_until(lambda: requeues("slow") == 2, process)
        (folder / "pace" / "slow").unlink()
        out = process.communicate(timeout=GUARD_SECONDS)[0]
    assert process.returncode == 1, out
    assert "7 complete, 1 cancelled" in out
    assert f"Slurm's job {cancelled}: cancelled; the same command resumes it" in out
    assert "Traceback" not in out
    assert [status(name)["state"] for name in NAMES].count("complete") == 7
    assert status("cancelled")["state"] == "interrupted"
    assert status("cancelled")["step"] > 0
    # The logs say so, in lines.
    logs = list((folder / "outputs" / ".submitit").glob("*_log.out"))
    assert len(logs) == 8
    assert all(b"\r" not in log.read_bytes() for log in logs)
    assert requeues("slow") == 2
    # The same command: the cancelled one alone.
    with sweep(overrides) as process:
        out = process.communicate(timeout=GUARD_SECONDS)[0]
    assert process.returncode == 0, out
    assert out.count("complete (stored)") == 7
    assert "1 job in Slurm's queue" in out
    assert len(list((folder / "outputs" / ".submitit").glob("*_log.out"))) == 9
    # Nobody disturbed these.
    for name in NAMES:
        assert main([*TINY, f"model.kwargs.name={name}", "run.root=undisturbed"]) == 0
    check_same(folder / "outputs", folder / "undisturbed")


def test_the_jobs_outlive_the_command_which_then_waits_for_them_again(folder: Path) -> None:
    for name in ("one", "two", "three"):
        (folder / "pace" / name).touch()
    overrides = "model.kwargs.name=one,two,three"
    with sweep(overrides) as process:
        wait_until(lambda: trains("one") and trains("two"), process)
        os.kill(process.pid, signal.SIGINT)
        out = process.communicate(timeout=GUARD_SECONDS)[0]
    assert process.returncode == 130, out
    assert "left to Slurm" in out
    assert "2 runs elsewhere, 1 not started" in out
    assert trains("one")
    with sweep(overrides) as process:
        assert process.stdout is not None
        assert any("in the queue already, as Slurm's job" in line for line in process.stdout)
        for name in ("one", "two", "three"):
            (folder / "pace" / name).unlink()
        out = process.communicate(timeout=GUARD_SECONDS)[0]
    # Those that ran were left alone, and their results were there in the end.
    assert process.returncode == 0, out
    assert "3 complete" in out
    assert len(list((folder / "outputs" / ".submitit").glob("*_log.out"))) == 3  # none was twice


def test_what_slurm_refuses_is_said_and_nothing_runs(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["-m", *TINY, *SLURM, "hydra.launcher.partition=none", "seed=1,2"])
    assert code == 2
    assert "Slurm refused the jobs" in capfd.readouterr().err
    assert not list(folder.rglob("status.json"))
