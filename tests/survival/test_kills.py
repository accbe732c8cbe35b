"""SIGKILL at any moment of a run loses nothing, and the same command ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from condexp.errors import InputError
from condexp.store.run_folder.completeness import read_checked_status
from condexp.store.run_folder.status import State, read_status
from tests.survival.nursery import Nursery
from tests.survival.runs import (
    Reference,
    check_at_any_moment,
    check_in_the_end,
    folder_under,
)
from tests.waiting import lives, until_a_random_moment, wait_until


def kill_and_go_on(
    nursery: Nursery, root: Path, reference: Reference, num_kills: int, seed: int
) -> list[int]:
    """Start runs and kill them, each from where the last one was killed; where they were."""
    moments, reached, kills = random.Random(seed), [], 0
    told = root.with_name("told")
    while kills < num_kills:
        told.write_bytes(b"")
        child = nursery.start(reference.overrides, root, told=str(told))
        # Most in the middle of things: an attempt that goes on has less ahead of it.
        least = moments.randint(-reference.num_records // 4, reference.num_records)
        wait_until(lambda: told.stat().st_size >= least or not lives(child))  # noqa: B023
        until_a_random_moment(moments, 0.05)
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


def test_a_kill_of_a_run_that_measures_curvature(
    tmp_path: Path, nursery: Nursery, references: dict[str, Reference]
) -> None:
    kill_and_go_on(nursery, tmp_path / "runs", references["curvature"], num_kills=1, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet", "curvature"])
def test_150_kills_at_random_moments(
    tmp_path: Path, nursery: Nursery, references: dict[str, Reference], name: str
) -> None:
    reached = kill_and_go_on(nursery, tmp_path / "runs", references[name], num_kills=150, seed=1)
    # They fell everywhere.
    assert len(set(reached)) >= 6


def disturb(folder: Path, how: str, aside: Path) -> None:
    """Do to a run's folder what people do to it while it lives."""
    if how == "move" and folder.exists():
        folder.rename(aside)
    elif how == "delete":
        shutil.rmtree(folder, ignore_errors=True)
    elif how == "unlock":
        (folder / "results.h5.lock").unlink(missing_ok=True)


def check_believed(folder: Path, reference: Reference) -> None:
    """A run that is called complete is the whole one."""
    try:
        complete = read_checked_status(folder).state is State.COMPLETE
    except InputError:  # none yet, or no more
        return
    if complete:
        assert (folder / "results.h5").read_bytes() == reference.results
        assert (folder / "checkpoint.pt").read_bytes() == reference.checkpoint


def kill_among_moves(
    nursery: Nursery, root: Path, reference: Reference, num_kills: int, seed: int
) -> None:
    """Kill runs, several of them at one folder, which is moved, deleted and unlocked meanwhile."""
    moments, kills = random.Random(seed), 0
    told, aside = root.with_name("told"), root.with_name("aside")
    folder = root / "default" / reference.folder.name
    while kills < num_kills:
        told.write_bytes(b"")
        children = [nursery.start(reference.overrides, root, told=str(told))]
        least = moments.randint(0, reference.num_records)
        wait_until(lambda: told.stat().st_size >= least or not lives(children[0]))  # noqa: B023
        disturb(folder, moments.choice(("move", "delete", "unlock", "none", "none")), aside)
        children += [nursery.start(reference.overrides, root) for _ in range(moments.randint(0, 2))]
        until_a_random_moment(moments, 0.1)
        moments.shuffle(children)
        for child in children:
            if moments.random() < 0.8:
                os.kill(child, signal.SIGKILL)
            code = nursery.wait(child)
            assert code in {0, 1, -signal.SIGKILL}
            kills += code < 0
            check_believed(folder, reference)
        if aside.exists():
            check_believed(aside, reference)
            shutil.rmtree(aside)
        check_at_any_moment(root, reference)
        if moments.random() < 0.05:
            shutil.rmtree(root)
    assert nursery.run(reference.overrides, root) == 0
    check_in_the_end(root, reference)


def test_kills_among_moves(
    tmp_path: Path, nursery: Nursery, references: dict[str, Reference]
) -> None:
    kill_among_moves(nursery, tmp_path / "runs", references["mlp"], num_kills=12, seed=3)


@pytest.mark.slow
def test_1000_kills_among_moves(
    tmp_path: Path, nursery: Nursery, references: dict[str, Reference]
) -> None:
    kill_among_moves(nursery, tmp_path / "runs", references["mlp"], num_kills=1000, seed=4)


@pytest.mark.slow
def test_ten_kills_through_the_command_line(
    tmp_path: Path, references: dict[str, Reference]
) -> None:
    reference, moments = references["mlp"], random.Random(2)
    command = [sys.executable, "-m", "condexp", *reference.overrides, f"run.root={tmp_path}"]
    name, kills = reference.folder.name, 0

    def is_at_it(process: "subprocess.Popen[bytes]") -> bool:
        try:
            return read_status(tmp_path / "default" / name).pid == process.pid
        except InputError:  # not yet
            return False

    while kills < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: process.poll() is not None or is_at_it(process))  # noqa: B023
        until_a_random_moment(moments, 0.5)
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
