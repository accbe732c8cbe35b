"""A run folder has one owner: whatever is moved, removed or run beside it, no number is lost."""

import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from condexp.errors import InputError
from condexp.runs import attempt, execute
from condexp.runs.result import RunResult
from condexp.runs.stop_signals import Stopped
from condexp.store import disk
from condexp.store.hdf5.seal import seal_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.completeness import read_statuses
from condexp.store.run_folder.status import State, Status, read_status, write_status
from condexp.training.events import StepRecord
from tests.in_process import contents, run
from tests.observer import Silent

RUN = [
    "trainer.steps=6",
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "trainer.checkpoint.every_steps=2",
    "analysis.schedule.every_steps=2",
    "model.depth=2",
    "model.width=4",
]
LOST = "was moved, removed or replaced while this process was writing the run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = run(tmp_path_factory.mktemp("whole"), *RUN).folder
    assert folder is not None
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def under(root: Path) -> Path:
    (folder,) = (root / "default").iterdir()
    return folder


class Meanwhile(Silent):
    """Does something once, in the middle of a run."""

    def __init__(self, act: Callable[[], None], step: int) -> None:
        super().__init__()
        self.act, self.step = act, step

    def on_step(self, record: StepRecord, /) -> None:
        super().on_step(record)
        if record.step == self.step:
            self.act()


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved") if folder.is_dir() else folder)


def move_and_run_again(folder: Path) -> None:
    move(folder)
    assert run(folder.parents[1], *RUN).state is State.COMPLETE


def put_another(folder: Path) -> None:
    move(folder)
    shutil.copytree(folder.with_name("moved"), folder)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_lock(folder: Path) -> None:
    (folder / "results.h5.lock").unlink()


def replace_results(folder: Path) -> None:
    shutil.copy(folder / "results.h5", folder / "copy")
    (folder / "copy").rename(folder / "results.h5")


LOSSES = [move, move_and_run_again, put_another, remove, replace_results]


def check_left_alone(result: RunResult, folder: Path, before: dict[str, bytes] | None) -> None:
    assert result.state is State.FAILED
    assert LOST in str(result.message)
    if before is None:
        assert not folder.exists()
    else:
        left = files(folder)
        assert before.items() <= left.items() | {("run.log", before["run.log"])}
        assert left.keys() <= before.keys()


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_run_that_loses_its_folder_stops_and_writes_nothing_more(
    tmp_path: Path, whole: Path, lose: Callable[[Path], None], step: int
) -> None:
    folder = tmp_path / "default" / whole.name
    before: dict[str, bytes] | None = None

    def act() -> None:
        nonlocal before
        lose(folder)
        before = files(folder) if folder.exists() else None

    check_left_alone(run(tmp_path, *RUN, observer=Meanwhile(act, step)), folder, before)
    assert run(tmp_path, *RUN).state is State.COMPLETE
    assert contents(folder) == contents(whole)


def test_a_lock_file_that_is_removed_costs_nothing(tmp_path: Path, whole: Path) -> None:
    folder, refused = tmp_path / "default" / whole.name, []

    def act() -> None:
        remove_lock(folder)
        refused.append(run(tmp_path, *RUN).message)

    assert run(tmp_path, *RUN, observer=Meanwhile(act, 3)).state is State.COMPLETE
    assert contents(folder) == contents(whole)
    assert "another process" in str(refused)
    assert (folder / "results.h5.lock").exists()


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize(
    "place",
    ["runs.attempt.create_results", "runs.attempt.ResultsWriter", "runs.attempt.seal_results",
     "runs.attempt.check_finished", "runs.attempt.remove_checkpoints",
     "runs.checkpointer.save_checkpoint"],
)  # fmt: skip
def test_at_every_place_of_its_work(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Path], None],
    place: str,
) -> None:
    folder = tmp_path / "default" / whole.name
    module = (
        attempt if "attempt" in place else __import__("condexp.runs.checkpointer", fromlist=["x"])
    )
    name = place.rpartition(".")[2]
    genuine = getattr(module, name)
    done: list[dict[str, bytes] | None] = []

    def act_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, name, genuine)
        if lose is not replace_results or (folder / "results.h5").exists():
            lose(folder)
        done.append(files(folder) if folder.exists() else None)
        return genuine(*arguments, **options)

    monkeypatch.setattr(module, name, act_first)
    result = run(tmp_path, *RUN)
    if result.state is State.FAILED:
        known = LOST in str(result.message) or "results" in str(result.message)
        assert known, result.message
        left = files(folder) if folder.exists() else None
        if done[0] is not None and lose in {move_and_run_again, put_another}:
            assert left is not None
            assert {k: v for k, v in left.items() if k != "run.log"} == {
                k: v for k, v in done[0].items() if k != "run.log"
            }
    if (folder / "status.json").exists() and read_status(folder).state is State.COMPLETE:
        assert contents(folder) == contents(whole)
    assert run(tmp_path, *RUN).state is State.COMPLETE
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("place", ["stored_result", "locked", "_earlier_status"])
@pytest.mark.parametrize("begun", [False, True], ids=["new", "interrupted"])
def test_a_run_that_another_process_finishes_between_look_and_lock_is_shown(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, place: str, begun: bool
) -> None:
    if begun:
        monkeypatch.setattr(attempt, "seal_results", None)  # it ends before the seal
        monkeypatch.setattr(attempt, "check_finished", None)
        assert run(tmp_path, *RUN).state is State.FAILED
        monkeypatch.undo()
    genuine = getattr(execute, place)
    finished: list[dict[str, bytes]] = []

    def other_first(*arguments: Any, **options: Any) -> Any:
        if not finished:
            finished.append({})
            if place == "_earlier_status":  # the lock is held
                other = run(tmp_path, *RUN)
                assert other.state is State.FAILED
                assert "another process" in str(other.message)
            else:
                assert run(tmp_path, *RUN).state is State.COMPLETE
                finished[0] = files(under(tmp_path))
        return genuine(*arguments, **options)

    monkeypatch.setattr(execute, place, other_first)
    result = run(tmp_path, *RUN)
    assert result.state is State.COMPLETE
    assert contents(under(tmp_path)) == contents(whole)
    if finished[0]:
        assert result.stored
        assert files(under(tmp_path)) == finished[0]


@pytest.mark.parametrize("lose", [move, move_and_run_again, remove, remove_lock])
@pytest.mark.parametrize("call", range(6))
def test_between_opening_and_locking(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Path], None],
    call: int,
) -> None:
    """At each call of the system by which a folder comes to be owned."""
    folder, calls = tmp_path / "default" / whole.name, [0]

    def patched(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def perform(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == call + 1 and folder.exists():
                undo()
                if lose is not remove_lock or (folder / "results.h5.lock").exists():
                    lose(folder)
            return genuine(*arguments, **options)

        return perform

    class Watching(disk.Owner):
        def __init__(self, path: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                undos.append(patch.undo)
                for module, name in ((os, "open"), (fcntl, "flock"), (os, "fstat")):
                    patch.setattr(module, name, patched(getattr(module, name)))
                super().__init__(path)

    undos: list[Callable[[], None]] = []

    def undo() -> None:
        monkeypatch.setattr(disk, "Owner", Genuine)
        undos[-1]()

    Genuine = disk.Owner  # noqa: N806
    monkeypatch.setattr(disk, "Owner", Watching)
    result = run(tmp_path, *RUN)
    monkeypatch.setattr(disk, "Owner", Genuine)
    assert result.state in {State.FAILED, State.COMPLETE}
    if (folder / "status.json").exists() and read_status(folder).state is State.COMPLETE:
        assert contents(folder) == contents(whole)
    assert run(tmp_path, *RUN).state is State.COMPLETE
    assert contents(folder) == contents(whole)


def cut_rows(path: Path) -> None:
    folder = path.parent
    shutil.rmtree(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultsWriter, "on_snapshot", lambda *_: None)
        patch.setattr(attempt, "check_finished", lambda *_: None)
        assert run(folder.parents[1], *RUN).state is State.COMPLETE


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"no results " * 999),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "rows": cut_rows,
    "without its end": lambda path: path.write_bytes(path.read_bytes()[:-20]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_complete_without_its_results_is_told_and_resumed(
    tmp_path: Path, whole: Path, damage: str
) -> None:
    folder = tmp_path / "default" / whole.name
    shutil.copytree(whole, folder)
    DAMAGES[damage](folder / "results.h5")
    ((_, status),) = read_statuses([tmp_path]).items()
    assert status.state is State.FAILED
    assert "said to be complete, but" in str(status.error)
    result = run(tmp_path, *RUN)
    assert (result.state, result.stored) == (State.COMPLETE, False)
    assert contents(folder) == contents(whole)
    assert read_statuses([tmp_path])[folder].state is State.COMPLETE


def test_complete_is_written_after_the_file_was_checked(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def seal_and_lose(path: Path, owner: disk.Owner) -> None:
        seal_results(path, owner)
        path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(attempt, "seal_results", seal_and_lose)
    result = run(tmp_path, *RUN)
    assert result.state is State.FAILED
    assert "is not the whole run" in str(result.message)
    assert read_status(under(tmp_path)).state is State.FAILED


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def running(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    here = os.uname().nodename
    plain: dict[str, Any] = {"pid": os.getppid(), "host": here, "updated": now}
    write_status(folder, Status(State.RUNNING, **plain | changes))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_status_tells(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "default" / whole.name
    running(folder)
    before = files(folder)
    for more in ([], ["run.on_existing=restart"]):
        result = run(tmp_path, *RUN, *more)
        assert result.state is State.FAILED
        assert f"process {os.getppid()} on" in str(result.message)
        assert "is at it: left alone" in str(result.message)
        assert files(folder) == before
    running(folder, host="elsewhere", updated="2020-01-01T00:00:00+00:00")
    assert "no word of process" in str(run(tmp_path, *RUN).message)
    running(folder, pid=2**22 + 1)  # no system counts so far: it is dead
    assert run(tmp_path, *RUN).state is State.COMPLETE


@pytest.mark.parametrize(
    "left",
    [{}, {"host": "elsewhere"}, {"updated": "2099-01-01T00:00:00+00:00"}],
    ids=["a process number in use again", "another host", "a clock that jumped"],
)
def test_where_there_is_a_lock_it_decides(
    tmp_path: Path, whole: Path, left: dict[str, str]
) -> None:
    folder = tmp_path / "default" / whole.name
    running(folder, **left)
    assert run(tmp_path, *RUN).state is State.COMPLETE
    assert contents(folder) == contents(whole)


def test_a_second_process_is_refused_without_the_lock_file(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "results.h5"
    with disk.locked(path):
        (tmp_path / "results.h5.lock").unlink()
        with pytest.raises(disk.ResultsError, match="another process"), disk.locked(path):
            pass


def test_the_group_may_lock_what_its_umask_lets_it_write(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with disk.locked(tmp_path / "results.h5"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "results.h5.lock").stat().st_mode & 0o777 == 0o664


def damage_status(folder: Path) -> None:
    path = folder / "status.json"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1'))


def test_a_damaged_status_is_written_anew(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "default" / whole.name
    shutil.copytree(whole, folder)
    damage_status(folder)
    assert run(tmp_path, *RUN).state is State.COMPLETE
    assert read_status(folder).state is State.COMPLETE
    assert contents(folder) == contents(whole)


def test_a_damaged_status_costs_an_interrupted_run_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "default" / whole.name

    def act() -> None:
        damage_status(folder)
        assert "another process" in str(run(tmp_path, *RUN).message)  # the lock tells
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run(tmp_path, *RUN, observer=Meanwhile(act, 3))
    damage_status(folder)
    monkeypatch.setattr(attempt, "create_results", None)  # it is not begun anew
    assert run(tmp_path, *RUN).state is State.COMPLETE
    assert contents(folder) == contents(whole)


def test_results_of_a_whole_run_are_not_written_over(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "default" / whole.name
    shutil.copytree(whole, folder)
    for name in ("status.json", "checkpoint.pt"):
        (folder / name).unlink()
    before = (folder / "results.h5").read_bytes()
    with pytest.raises(InputError, match="holds a whole run, but neither"):
        run(tmp_path, *RUN)
    assert (folder / "results.h5").read_bytes() == before
    assert run(tmp_path, *RUN, "run.on_existing=restart").state is State.COMPLETE
