"""A run that goes on is looked at until it ends, by what it commits and never by the clock."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from condexp.results.live import follow
from condexp.results.watch_view import remaining, watch_view
from condexp.store.disk import locked
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.liveness import Liveness
from condexp.store.run_folder.status import State, Status, write_status
from tests.conftest import Command
from tests.results.stored import text_of, write_run
from tests.store.records import eval_record, make_spec, snapshot_record, step_record

SPEC = make_spec(num_snapshots=3)  # at steps 0, 3 and 6 of 9
NUM_STEPS = 9


class LiveRun:
    """A run that this process writes: one step further whenever whoever looks at it waits.

    Args:
        folder: Where.
        end: The state in which it ends; None where its process dies without a word.
    """

    def __init__(self, folder: Path, end: State | None) -> None:
        self.folder = folder
        self.file = folder / "results.h5"
        self._end = end
        self._stack = ExitStack()
        self._owner = self._stack.enter_context(locked(self.file))
        self._say(State.RUNNING, 0)
        self._acts = self._work()

    def wait(self, _seconds: float) -> None:
        """Do what it does next."""
        next(self._acts)

    def close(self) -> None:
        """Let its lock go."""
        self._stack.close()

    def _say(self, state: State, step: int) -> None:
        # Said long ago: what tells that it lives is its lock.
        error = "no space left" if state is State.FAILED else None
        write_status(
            self.folder,
            Status(
                state,
                step,
                NUM_STEPS,
                seconds=2.0 * step,
                updated="2020-01-01T00:00:00+00:00",
                pid=os.getpid(),
                host=socket.gethostname(),
                error=error,
            ),
        )

    def _work(self) -> Iterator[None]:
        create_results(self.file, SPEC, self._owner)
        yield
        with ResultsWriter(self.file, owner=self._owner) as writer:
            for step in range(NUM_STEPS):
                if step in SPEC.snapshot_steps:
                    writer.on_snapshot(snapshot_record(SPEC, step))
                writer.on_step(step_record(step))
                if step + 1 in SPEC.eval_steps:
                    writer.on_eval(eval_record(SPEC, step + 1))
                writer.flush()
                self._say(State.RUNNING, step + 1)
                yield
        if self._end is not None:
            self._say(self._end, NUM_STEPS)
        self.close()
        yield


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., LiveRun]]:
    made: list[LiveRun] = []

    def make(end: State | None = State.COMPLETE) -> LiveRun:
        (tmp_path / "run").mkdir()
        made.append(LiveRun(tmp_path / "run", end))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_each_thing_that_is_new_is_seen_once(live: Callable[..., LiveRun]) -> None:
    run = live()
    looks = list(follow(run.folder, run.wait))
    assert [look.status.step for look in looks] == [0, *range(NUM_STEPS + 1), NUM_STEPS]
    assert [look.num_snapshots for look in looks] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [look.goes_on for look in looks] == [True] * 11 + [False]
    assert looks[0].run is None
    assert looks[-1].finished


@pytest.mark.parametrize(
    ("end", "life", "words"),
    [
        (State.FAILED, Liveness.ENDED, "failed: no space left"),
        (State.INTERRUPTED, Liveness.ENDED, "interrupted"),
        (None, Liveness.DEAD, "interrupted (stale): process"),
    ],
)
def test_it_ends_unfinished(
    live: Callable[..., LiveRun], end: State | None, life: Liveness, words: str
) -> None:
    run = live(end)
    *_, last = follow(run.file, run.wait)
    assert (last.life, last.finished, last.goes_on) == (life, False, False)
    assert last.last_word.startswith(words)


def test_looking_changes_nothing_of_the_run(live: Callable[..., LiveRun]) -> None:
    run = live()
    seen: list[str] = []
    for look in follow(run.folder, run.wait):
        before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
        seen.append(text_of(watch_view(look)))
        assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    assert "no results yet" in seen[0]
    middle = seen[7]
    assert "step 6/9" in middle
    assert "about 0:00:06 left" in middle
    assert "layers at step 3" in middle
    assert re.search("batch loss +█.* 2 → 0.333", middle)
    assert re.search(r"log kfac_kappa_0.5 .* → .* \((conv|fc|groups|shared.*)\)", middle)
    assert " left" not in seen[-1]
    assert "complete" in seen[-1]


def test_the_worst_layers_come_first_and_bounds_are_bounds(tmp_path: Path) -> None:
    stored = write_run(tmp_path / "run", bounded=["conv"])
    (look,) = follow(stored, lambda _seconds: pytest.fail("it has ended"))
    text = text_of(watch_view(look, top=2))
    above, table = text.split("layers at step")
    assert re.search(r"log kfac_kappa_0.5 .* ≥ 64 → ≥ 64 \(conv\)", above)
    assert [line.split()[0] for line in table.splitlines() if "≥ 64" in line] == ["conv"]
    assert "hidden" in table  # as large, and known
    assert "fc" not in table


def test_how_long_it_will_take() -> None:
    assert remaining(Status(State.RUNNING, step=0, num_steps=9), 3) == ""
    assert remaining(Status(State.INTERRUPTED, step=3, num_steps=9, seconds=3.0), 3) == ""
    assert remaining(Status(State.COMPLETE, step=9, num_steps=9, seconds=3.0), 9) == ""


@pytest.mark.parametrize(("end", "code"), [(State.DIVERGED, 0), (State.FAILED, 1), (None, 1)])
def test_watch_ends_with_the_run(
    live: Callable[..., LiveRun],
    condexp: Command,
    monkeypatch: pytest.MonkeyPatch,
    end: State | None,
    code: int,
) -> None:
    run = live(end)
    monkeypatch.setattr("time.sleep", run.wait)
    got, out, err = condexp("watch", str(run.folder))
    assert (got, err) == (code, "")
    assert "step 9/9" in out
    assert out.count("layers at step 6") == 1  # what is no terminal gets the last alone


def test_watch_is_left_by_ctrl_c(
    live: Callable[..., LiveRun], condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live()

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    assert condexp("watch", str(run.folder))[::2] == (130, "condexp: interrupted\n")


def test_watch_of_no_run_is_one_line(tmp_path: Path, condexp: Command) -> None:
    write_run(tmp_path / "grid" / "run")
    code, _, err = condexp("watch", str(tmp_path / "grid"))
    assert code == 2
    assert "it is a folder of runs; give one of them" in err
    (tmp_path / "grid" / "run" / "status.json").write_text("{")
    code, _, err = condexp("watch", str(tmp_path / "grid" / "run"))
    assert code == 1
    assert err.count("\n") == 1
    assert "is not JSON" in err


def test_the_page_is_written_anew_at_each_snapshot(
    live: Callable[..., LiveRun], condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pages = live(), list[bytes]()

    def wait(seconds: float) -> None:
        page = run.folder / "report.html"
        if page.exists() and page.read_bytes() not in pages:
            pages.append(page.read_bytes())
        run.wait(seconds)

    monkeypatch.setattr("time.sleep", wait)
    code, out, err = condexp("report", str(run.folder), "--watch")
    assert (code, err) == (0, "")
    assert re.findall(r"(\d) snapshots, (\w+)", out) == [
        *(("0", "running"), ("1", "running"), ("2", "running"), ("3", "running")),
        ("3", "complete"),
    ]
    assert [b'id="live"' in page for page in pages] == [True] * len(pages)
    assert b'id="live"' not in (run.folder / "report.html").read_bytes()
