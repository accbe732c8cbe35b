"""An observer of runs for tests."""

from condexp.runs.prepare import PreparedRun
from condexp.runs.result import RunResult
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord


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

    def finished(self, _: RunResult, /) -> None:
        self.told.append("finished")
