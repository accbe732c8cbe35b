"""Tasks of srun as the processes of one run, stopped and gone on with as a batch script does it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import GUARD_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("slurm")]
RUN = [
    *(sys.executable, "-m", "condexp", "run", "model=import", "trainer.num_processes=2"),
    "trainer.sync_batchnorm=true",
    "trainer.steps=30",
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "trainer.checkpoint.every_epochs=null",
    "analysis.schedule.log_spaced=4",
    "model.target=tests.dropout_net:Held",
]
SRUN = ["srun", "--ntasks=2", "--kill-on-bad-exit=1", "--mem=2G"]


def test_two_tasks_are_one_run_which_a_signal_lets_go_on(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, stopped, held = tmp_path / "whole", tmp_path / "stopped", tmp_path / "held"
    held.mkdir()
    alone = subprocess.run([*RUN, f"run.root={whole}"], cwd=ROOT, env=environment, check=False)
    assert alone.returncode == 0
    command = [*SRUN, *RUN, f"run.root={stopped}"]
    with subprocess.Popen(command, cwd=ROOT, env=environment | {"HELD": str(held)}) as step:
        wait_until(lambda: len([*held.iterdir()]) == 2 or step.poll() is not None)
        assert step.poll() is None
        (number,) = squeue("--steps", "--format=%i")[-1:]
        subprocess.run(["scancel", f"--signal={signal.SIGUSR2.name[3:]}", number], check=True)
        assert step.wait(timeout=GUARD_SECONDS) == 75
    assert status_of(stopped)["state"] == "interrupted"
    again = subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=GUARD_SECONDS)
    assert again.returncode == 0
    (expected,), (found,) = (root.glob("default/*/results.h5") for root in (whole, stopped))
    assert found.read_bytes() == expected.read_bytes()


def squeue(*options: str) -> list[str]:
    command = ["squeue", "--noheader", "--me", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def status_of(root: Path) -> dict[str, object]:
    for path in root.glob("default/*/status.json"):
        return dict(json.loads(path.read_text()))
    return {}
