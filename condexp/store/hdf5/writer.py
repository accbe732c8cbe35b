"""Append to a results file: rows by ``pwrite`` at fixed offsets, then a counter: the commit."""

import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from condexp.errors import choose
from condexp.store.disk import Owner, as_results_error, locked, write_at
from condexp.store.hdf5.encoding import plain_rows, snapshot_row
from condexp.store.hdf5.offsets import by_axis, clear_rows, read_offsets
from condexp.store.hdf5.open import open_file
from condexp.store.hdf5.row_checks import row_checksums, running_checksums
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import CHECKSUMS, COUNTERS, STEPS
from condexp.training.events import EvalRecord, RowCounts, SnapshotRecord, StepRecord

FLUSH_SECONDS = 1.0


class Durability(StrEnum):
    """What a committed snapshot survives: the death of the process, or a power cut as well."""

    KILL = "kill"
    POWER = "power"


class ResultsWriter:
    """The only writer of a results file, and a sink of the training loop.

    Goes on after the rows that are committed. A call that raised :class:`ResultsError` may be
    repeated once there is space again: nothing it was given is lost.

    Args:
        path: The file made by :func:`condexp.store.hdf5.create.create_results`.
        durability: ``power`` waits for the disk at every commit; ``kill`` does not.
        owner: The owner of the run's folder; None: the writer takes the lock, and holds it until
            it is closed.

    Attributes:
        owner: The owner of the run's folder.

    Raises:
        InputError: If it is not a results file, is sealed, or the durability is unknown.
        ResultsError: If it cannot be written, or another process writes it.
    """

    def __init__(
        self, path: Path, durability: str = Durability.KILL, owner: Owner | None = None
    ) -> None:
        self.path = path
        self._sync = choose("durability", durability, list(Durability)) == Durability.POWER
        self._pending: dict[int, StepRecord] = {}
        self._last_flush = time.monotonic()
        self._resources = ExitStack()
        try:
            with as_results_error(path, "Nothing was written"):
                self.owner = owner or self._resources.enter_context(locked(path))
                self._offsets = read_offsets(path)
                self._committed = dict(self._offsets.committed)
                self._handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._resources.callback(os.close, self._handle)
                self.owner.adopt(self._handle)
        except BaseException:
            self._resources.close()
            raise

    @property
    def committed(self) -> RowCounts:
        """The rows that are final."""
        done = self._committed
        return RowCounts(done[Axis.SNAPSHOT], done[Axis.TRAIN], done[Axis.EVAL])

    @property
    def num_committed(self) -> int:
        """Number of snapshots that are final."""
        return self._committed[Axis.SNAPSHOT]

    def on_step(self, record: StepRecord, /) -> None:
        """Take one training step; it is committed within a second, or with the next other record.

        Args:
            record: The step that follows the last one, or the last one again.

        Raises:
            ValueError: If a step is left out or lies beyond the end.
            ResultsError: If the file cannot be written.
        """
        following = self._committed[Axis.TRAIN] + len(self._pending)
        if record.step not in self._pending:
            self._expect(Axis.TRAIN, following, record.step)
        self._pending[record.step] = record
        if time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def on_eval(self, record: EvalRecord, /) -> None:
        """Commit one evaluation, and the training steps before it.

        Args:
            record: The next scheduled evaluation.

        Raises:
            ValueError: If it is not the next one of the schedule.
            ResultsError: If the file cannot be written.
        """
        self._expect(Axis.EVAL, self._committed[Axis.EVAL], record.step)
        self.flush()
        names = (column.measure for column in self._offsets.columns[Axis.EVAL])
        records = {name: [getattr(record, name)] for name in names}
        self._append_plain(Axis.EVAL, records, num_rows=1)

    def on_snapshot(self, record: SnapshotRecord, /) -> None:
        """Commit one snapshot, and the training steps before it.

        Args:
            record: The next scheduled snapshot.

        Raises:
            ValueError: If it is not the next one of the schedule, or its layers are not the file's.
            ResultsError: If the file cannot be written.
        """
        self._expect(Axis.SNAPSHOT, self._committed[Axis.SNAPSHOT], record.step)
        self.flush()
        rows = snapshot_row(
            self._offsets.columns[Axis.SNAPSHOT],
            self._offsets.extent,
            self._offsets.kappa_p,
            record,
        )
        with self._guarded():
            self._append(Axis.SNAPSHOT, rows, row_checksums(rows), num_rows=1)

    def flush(self) -> None:
        """Commit the training steps that were taken.

        Raises:
            ResultsError: If the file cannot be written; the steps are kept for the next call.
        """
        self._last_flush = time.monotonic()
        if not self._pending:
            return
        steps = list(self._pending.values())
        names = (column.measure for column in self._offsets.columns[Axis.TRAIN])
        records = {name: [getattr(step, name) for step in steps] for name in names}
        self._append_plain(Axis.TRAIN, records, len(steps))
        self._pending.clear()

    def sync(self) -> RowCounts:
        """Commit the training steps that were taken, and wait until the disk has every row.

        Returns:
            The rows that are final now, and stay so.

        Raises:
            ResultsError: If the file cannot be written.
        """
        self.flush()
        with self._guarded():
            os.fdatasync(self._handle)
        return self.committed

    def copy_rows(self, source: Path, counts: RowCounts) -> None:
        """Begin with the first rows of another file of the same layers and measures, bit for bit.

        Args:
            source: The other file.
            counts: How many rows of each kind.

        Raises:
            ValueError: If its rows are not those of this file's schedule.
            DamageError: If they are damaged.
            ResultsError: If this file cannot be written.
        """
        with open_file(source) as file:
            for axis, num in by_axis(counts).items():
                if not np.array_equal(file[STEPS[axis]][:num], self._offsets.steps[axis][:num]):
                    raise ValueError(f"{source} has other {axis} steps than {self.path}")
                columns = [file[column.path] for column in self._offsets.columns[axis]]
                if axis is not Axis.SNAPSHOT:
                    rows = [column[:num].tobytes() for column in columns]
                    self._append(axis, rows, running_checksums(rows, 0), num)
                    continue
                for index in range(num):
                    row = [column[index].tobytes() for column in columns]
                    self._append(axis, row, row_checksums(row), num_rows=1)

    def rewind(self, counts: RowCounts) -> None:
        """Take rows back, as if they had never been written.

        First the counters say so, then the rows are emptied: dying in between leaves a file that
        can be rewound again.

        Args:
            counts: The rows that stay.

        Raises:
            ValueError: If there are fewer rows than are to stay.
            ResultsError: If the file cannot be written.
        """
        kept = by_axis(counts)
        if any(not 0 <= kept[axis] <= self._committed[axis] for axis in Axis):
            raise ValueError(f"{self.path} has {self.committed}, too few for {counts}")
        self._pending.clear()
        self.owner.verify()
        with self._guarded():
            for axis, num_rows in kept.items():
                self._count(axis, num_rows)
                self._committed[axis] = num_rows
            os.fdatasync(self._handle)
            for axis, num_rows in kept.items():
                clear_rows(self._handle, self._offsets, axis, num_rows)
            os.fdatasync(self._handle)

    def close(self) -> None:
        """Commit what is left, and let the file go; may be repeated.

        Raises:
            ResultsError: If the last training steps cannot be written; the file is still held then.
        """
        self.flush()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        finally:
            self._resources.close()

    def _guarded(self) -> AbstractContextManager[None]:
        return as_results_error(
            self.path,
            f"{self.num_committed} committed snapshots are intact; make room and repeat the call, "
            "or start the run again",
        )

    def _expect(self, axis: Axis, row: int, step: int) -> None:
        schedule = self._offsets.steps[axis]
        if row >= len(schedule):
            raise ValueError(f"{self.path}: no {axis} row is left for step {step}")
        if step != schedule[row]:
            raise ValueError(
                f"{self.path}: the next {axis} record is of step {schedule[row]}, not {step}"
            )

    def _append_plain(self, axis: Axis, records: Mapping[str, list[float]], num_rows: int) -> None:
        """Append training steps or evaluations, whose checksum runs on."""
        rows = plain_rows(self._offsets.columns[axis], records)
        with self._guarded():
            checksums = running_checksums(rows, self._last_checksum(axis))
            self._append(axis, rows, checksums, num_rows)

    def _last_checksum(self, axis: Axis) -> int:
        row = self._committed[axis] - 1
        if row < 0:
            return 0
        stored = os.pread(self._handle, 4, self._offsets.offsets[CHECKSUMS[axis]] + 4 * row)
        return int.from_bytes(stored, "little")

    def _append(
        self, axis: Axis, rows: list[bytes], checksums: NDArray[np.uint32], num_rows: int
    ) -> None:
        """Write the next rows of every column, then the counter that makes them final."""
        self.owner.verify()
        first = self._committed[axis]
        place = self._offsets.offsets[CHECKSUMS[axis]] + first * (checksums.nbytes // num_rows)
        write_at(self._handle, checksums.tobytes(), place)
        for column, data in zip(self._offsets.columns[axis], rows, strict=True):
            if data:
                write_at(
                    self._handle,
                    data,
                    self._offsets.offsets[column.path] + first * column.row_bytes,
                )
        self._flush_disk()
        self._count(axis, first + num_rows)
        self._flush_disk()
        # Not before: a call whose last wait fails is repeated, and writes the same row again.
        self._committed[axis] = first + num_rows

    def _count(self, axis: Axis, num_rows: int) -> None:
        """Write a counter: what is below it is final."""
        counter = np.array(num_rows, dtype="<i8").tobytes()
        write_at(self._handle, counter, self._offsets.offsets[COUNTERS[axis]])

    def _flush_disk(self) -> None:
        """Wait for the disk where that was asked for; the order of the two waits is the commit."""
        if self._sync:
            os.fdatasync(self._handle)
