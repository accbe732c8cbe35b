"""``run.index=N``: one job of a sweep, for schedulers that start each by its number."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from condexp.store.disk import locked
from condexp.store.schema.layout import FILE_NAME

SWEEP = [
    "run", "-m", "trainer.steps=2", "dataset.subset.train=40", "dataset.subset.test=20",
    "trainer.batch_size=20", "model.depth=2", "model.width=4,8", "seed=1,2",
    "analysis.schedule.log_spaced=null",
]  # fmt: skip
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs_in_this_process: None, no_picture: None
) -> None:
    monkeypatch.chdir(tmp_path)


def planned(condexp: Command, *options: str) -> dict[int, str]:
    """The folder of each job as the dry run prints it."""
    code, out, _ = condexp(*SWEEP, "run.dry_run=true", *options)
    assert code == 0
    rows = [re.split(r"\s*│\s*", line) for line in out.splitlines() if line.startswith("│")]
    return {int(row[1]): row[7] for row in rows if row[1]}  # a long row is folded


def test_each_number_is_that_job(tmp_path: Path, condexp: Command) -> None:
    every = planned(condexp)
    assert [*every] == [1, 2, 3, 4]
    assert len({*every.values()}) == 4
    assert [*planned(condexp, "run.index=3")] == [3]
    for index in (3, 1):
        code, out, _ = condexp(*SWEEP, f"run.index={index}")
        assert code == 0
        assert f"job {index} (" in out
        assert (tmp_path / every[index] / "results.h5").is_file()
    made = {f"outputs/default/{path.name}" for path in (tmp_path / "outputs/default").iterdir()}
    assert made == {every[1], every[3]}
    # The sweep finds them there, and runs the others alone.
    _, out, _ = condexp(*SWEEP, "run.dry_run=true")
    assert "2 to run, 2 stored already" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*SWEEP, "run.index=5"], "run.index=5: the sweep has the jobs 1 to 4, which"),
        ([*SWEEP, "run.index=0"], "run.index=0: the sweep has the jobs 1 to 4"),
        ([*SWEEP, "run.index=x"], "run.index=x: the sweep has the jobs 1 to 4"),
        ([*SWEEP, "run.index=1,2"], "run.index chooses one job of a sweep: give one number"),
        (["run", "run.index=1"], "run.index chooses one job of a sweep of condexp's: give -m"),
    ],
)
def test_no_such_job(tmp_path: Path, condexp: Command, options: list[str], message: str) -> None:
    code, out, err = condexp(*options)
    assert code == 2
    assert not out
    assert err.startswith(f"condexp: {message}")
    assert err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_job_that_another_process_is_at(tmp_path: Path, condexp: Command) -> None:
    folder = tmp_path / planned(condexp)[2]
    folder.mkdir(parents=True)
    with locked(folder / FILE_NAME):
        code, out, _ = condexp(*SWEEP, "run.index=2")
    assert code == 1
    assert "is being written by another process" in out
    assert not (folder / FILE_NAME).exists()
