"""A run that goes on, looked at again and again until it ends."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from condexp.results.status_view import RunRow
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.completeness import read_checked_status
from condexp.store.run_folder.liveness import Liveness, liveness_of
from condexp.store.run_folder.status import FINISHED, STATUS_NAME, Status, find_results
from condexp.store.schema.layout import FILE_NAME

SECONDS = 1.0  # between two looks; a run writes its status every few
Wait = Callable[[float], object]


@dataclass(frozen=True)
class Look:
    """A run at one moment.

    Attributes:
        folder: Its folder.
        status: What its ``status.json`` says.
        life: What is known of its process.
        run: Its results; None before there are any.
        num_snapshots: Committed ones.
    """

    folder: Path
    status: Status
    life: Liveness
    run: Run | None
    num_snapshots: int

    @property
    def goes_on(self) -> bool:
        """Whether it may change; nothing is known of a silent process on another machine."""
        return self.life in {Liveness.ALIVE, Liveness.SILENT}

    @property
    def finished(self) -> bool:
        """Whether it is complete or diverged, which is a result."""
        return self.status.state in FINISHED

    @property
    def last_word(self) -> str:
        """The state in words, with what became of it."""
        row = RunRow(self.status, self.life)
        return f"{row.label}: {row.remark}" if row.remark else row.label


def follow(path: Path, wait: Wait) -> Iterator[Look]:
    """Look at a run, and again whenever it has something new, until it ends.

    Nothing of the run is locked or written. A results file without a status is of no run that goes
    on.

    Args:
        path: The run's folder, or its results file.
        wait: Called between two looks with the seconds to let pass.

    Yields:
        How it is; the last one no longer goes on.

    Raises:
        InputError: If there is no run.
        DamageError: If it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if not os.path.lexists(folder / STATUS_NAME):
        find_results(path)  # says what is there in place of a run
    before: object = None
    while True:
        look = _look(folder)
        now = (look.status, look.life, look.run is None, look.num_snapshots)
        if now != before:
            before = now
            yield look
        if not look.goes_on:
            return
        wait(SECONDS)


def _look(folder: Path) -> Look:
    status = read_checked_status(folder)
    life = liveness_of(folder, status)
    there = os.path.lexists(folder / FILE_NAME)
    run = open_run(folder) if there or life is Liveness.ENDED else None
    return Look(folder, status, life, run, len(run.steps) if run else 0)
