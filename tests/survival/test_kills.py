"""SIGKILL at any moment of a run loses nothing, and the same command ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.survival.nursery import Nursery
from tests.survival.runs import (
    Reference,
    check_at_any_moment,
    check_in_the_end,
    folder_under,
)


def kill_and_go_on(
    nursery: Nursery, root: Path, reference: Reference, num_kills: int, seed: int
) -> list[int]:
    """Start runs and kill them, each from where the last one was killed; where they were."""
    moments, reached, kills = random.Random(seed), [], 0
    while kills < num_kills:
        child = nursery.start(reference.overrides, root)
        # Most in the middle of things: an attempt that goes on has less ahead of it.
        time.sleep(moments.uniform(0, 1.1 * reference.seconds))
        os.kill(child, signal.SIGKILL)
        code = nursery.wait(child)
        assert code in {0, -signal.SIGKILL}
        reached.append(check_at_any_moment(root, reference)[1])
        if code == 0:
            check_in_the_end(root, reference)
            shutil.rmtree(root)
        else:
            kills += 1
    assert nursery.run(reference.overrides, root) == 0
    check_in_the_end(root, reference)
    return reached


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_kills_at_random_moments(
    tmp_path: Path, nursery: Nursery, references: dict[str, Reference], name: str
) -> None:
    kill_and_go_on(nursery, tmp_path / "runs", references[name], num_kills=6, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_150_kills_at_random_moments(
    tmp_path: Path, nursery: Nursery, references: dict[str, Reference], name: str
) -> None:
    reached = kill_and_go_on(nursery, tmp_path / "runs", references[name], num_kills=150, seed=1)
    # They fell everywhere.
    assert len(set(reached)) >= 6


@pytest.mark.slow
def test_ten_kills_through_the_command_line(
    tmp_path: Path, references: dict[str, Reference]
) -> None:
    reference, moments = references["mlp"], random.Random(2)
    command = [sys.executable, "-m", "condexp", *reference.overrides, f"run.root={tmp_path}"]
    began = time.perf_counter()
    subprocess.run([*command, "seed=2"], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(tmp_path / "default")
    kills = 0
    while kills < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The first half of its life is importing.
        time.sleep(moments.uniform(0.4, 1.0) * seconds)
        process.kill()
        code = process.wait()
        check_at_any_moment(tmp_path, reference)
        if code == 0 and (tmp_path / "default").exists():
            shutil.rmtree(tmp_path / "default")
        kills += code != 0
    subprocess.run(command, check=True, capture_output=True)
    folder = folder_under(tmp_path)
    assert (folder / "results.h5").read_bytes() == reference.results
    assert (folder / "checkpoint.pt").read_bytes() == reference.checkpoint
