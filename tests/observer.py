"""Observers of runs for tests."""

from pathlib import Path

from condexp.runs.prepare import PreparedRun
from condexp.runs.result import RunResult
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord
from tests.waiting import wait_until


class Silent:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.told: list[str] = []

    def started(self, _: PreparedRun, /) -> None:
        self.told.append("started")

    def on_step(self, record: StepRecord, /) -> None:
        self.losses.append(record.loss)

    def on_eval(self, _: EvalRecord, /) -> None:
        self.told.append("eval")

    def on_snapshot(self, _: SnapshotRecord, /) -> None:
        self.told.append("snapshot")

    def measuring(self, what: str, num_done: int, num: int, /) -> None:
        pass

    def finished(self, _: RunResult, /) -> None:
        self.told.append("finished")


class Telling(Silent):
    """An observer that writes a byte to a file for each record, so that others know how far it is.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _tell(self) -> None:
        with self.path.open("ab") as file:
            file.write(b".")

    def on_step(self, _: StepRecord, /) -> None:
        self._tell()

    def on_eval(self, _: EvalRecord, /) -> None:
        self._tell()

    def on_snapshot(self, _: SnapshotRecord, /) -> None:
        self._tell()


class Watched(Silent):
    """An observer that waits at every thirtieth snapshot until some readers have come that far.

    Args:
        folder: Where each reader makes a file, ``<its name> <n>``, once it has seen n snapshots.
        num_readers: How many there are.
    """

    def __init__(self, folder: Path, num_readers: int) -> None:
        super().__init__()
        self.folder, self.num_readers, self.num_snapshots = folder, num_readers, 0

    def on_snapshot(self, _: SnapshotRecord, /) -> None:
        self.num_snapshots += 1
        if self.num_snapshots % 30 == 0:
            here = f"* {self.num_snapshots}"
            wait_until(lambda: len([*self.folder.glob(here)]) == self.num_readers)
