"""A kill or a full disk at a given write, sync or rename: the same command ends with the bytes."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import h5py
import pytest

from condexp.store.run_folder.status import State, read_status
from tests.survival.nursery import Nursery
from tests.survival.runs import (
    EVERY_RUN,
    Reference,
    check_at_any_moment,
    check_in_the_end,
    folder_under,
    undisturbed,
)

NEVER = 10**9


@pytest.fixture(scope="module")
def few(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return undisturbed(nursery, tmp_path_factory.mktemp("few"), EVERY_RUN["few"])


@pytest.fixture(scope="module")
def num_calls(nursery: Nursery, few: Reference, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many writes, syncs and renames an undisturbed run makes."""
    root = tmp_path_factory.mktemp("count")
    counted = root / "count"
    assert nursery.run(few.overrides, root, call=NEVER, how="before", count=str(counted)) == 0
    return int(counted.read_text())


def die_and_go_on(
    nursery: Nursery, root: Path, reference: Reference, calls: Iterable[int], how: str
) -> None:
    for call in calls:
        assert nursery.run(reference.overrides, root, call=call, how=how) == -9
        check_at_any_moment(root, reference)
        # The next one dies in what it does first: taking rows back, if there is a checkpoint.
        # It has nothing to do where all was done but to tell the disk's folder.
        assert nursery.run(reference.overrides, root, call=call % 7, how=how) in {-9, 0}
        check_at_any_moment(root, reference)
        assert nursery.run(reference.overrides, root) == 0
        check_in_the_end(root, reference)
        shutil.rmtree(root)


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_dying_at_a_call(
    tmp_path: Path, nursery: Nursery, few: Reference, num_calls: int, how: str
) -> None:
    # Other calls each way, all along the run.
    first = {"before": 0, "half": 1, "after": 2}[how] * num_calls // 12
    die_and_go_on(nursery, tmp_path / "r", few, range(first, num_calls, num_calls // 4), how)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_dying_at_every_call(
    tmp_path: Path, nursery: Nursery, few: Reference, num_calls: int, how: str
) -> None:
    # Between two calls nothing is written: after one is before the next.
    stride = 1 if how == "half" else 7
    die_and_go_on(nursery, tmp_path / "r", few, range(0, num_calls, stride), how)


def fill_and_go_on(
    nursery: Nursery, root: Path, reference: Reference, calls: Iterable[int], how: str
) -> set[tuple[int, State]]:
    ends = set()
    for call in calls:
        code = nursery.run(reference.overrides, root, call=call, how=how)
        assert code in {0, 1}  # no crash
        check_at_any_moment(root, reference)
        folder = folder_under(root)
        if (folder / "status.json").exists():
            status = read_status(folder)
            ends.add((code, status.state))
            if status.state is State.FAILED:
                assert "No space left on device (ENOSPC; " in str(status.error)
                assert "MiB free" in str(status.error)
        assert nursery.run(reference.overrides, root) == 0
        with h5py.File(folder / "results.h5") as file:
            sealed = "condexp_sealed" in file.attrs
        # Not to be sealed for want of room costs the room alone.
        assert sealed or code == 0
        check_in_the_end(root, reference, sealed=sealed)
        shutil.rmtree(root)
    return ends


@pytest.mark.parametrize("how", ["full", "full once"])
def test_a_full_disk_at_a_call(
    tmp_path: Path, nursery: Nursery, few: Reference, num_calls: int, how: str
) -> None:
    first = (how == "full") * num_calls // 12
    calls = range(first, num_calls, num_calls // 6)
    ends = fill_and_go_on(nursery, tmp_path / "r", few, calls, how)
    assert (1, State.FAILED) in ends or how == "full"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "full once"])
def test_a_full_disk_at_every_call(
    tmp_path: Path, nursery: Nursery, few: Reference, num_calls: int, how: str
) -> None:
    calls = range(0, num_calls, 3 if how == "full" else 1)
    ends = fill_and_go_on(nursery, tmp_path / "r", few, calls, how)
    if how == "full once":
        assert {(0, State.COMPLETE), (1, State.FAILED)} <= ends
    else:  # no room to say how it ended: it reads as a run whose process is gone
        ends.discard((0, State.COMPLETE))  # of the last calls, which only sync what is written
        assert ends == {(0, State.RUNNING), (1, State.PENDING), (1, State.RUNNING)}
