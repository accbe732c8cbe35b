"""Append to a results file: rows by ``pwrite`` at fixed places, then a counter: the commit."""

import os
import time
import zlib
from contextlib import AbstractContextManager, ExitStack
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from condexp.errors import InputError, choose
from condexp.store.columns import plain_rows, snapshot_row
from condexp.store.disk import as_results_error, locked, write_at
from condexp.store.fields import Axis
from condexp.store.hdf5 import open_file, read_extent
from condexp.store.layout import COUNTERS, CRC, STEPS, columns, datasets
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord

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
        path: The file made by :func:`condexp.store.create.create_results`.
        durability: ``power`` waits for the disk at every commit; ``kill`` does not.

    Raises:
        InputError: If it is not a results file, is sealed, or the durability is unknown.
        ResultsError: If it cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, durability: str = Durability.KILL) -> None:
        self.path = path
        self._sync = choose("durability", durability, list(Durability)) == Durability.POWER
        self._committed = dict.fromkeys(Axis, 0)
        self._pending: dict[int, StepRecord] = {}
        self._last_flush = time.monotonic()
        self._resources = ExitStack()
        try:
            with as_results_error(path, "Nothing was written"):
                self._resources.enter_context(locked(path))
                self._read_layout()
                self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._resources.callback(os.close, self._handle)
        except BaseException:
            self._resources.close()
            raise

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
        row = self._committed[Axis.EVAL]
        self._expect(Axis.EVAL, row, record.step)
        self.flush()
        names = (column.measure for column in self._columns[Axis.EVAL])
        rows = plain_rows(
            self._columns[Axis.EVAL], {name: [getattr(record, name)] for name in names}
        )
        with self._guarded():
            self._append(Axis.EVAL, rows, num_rows=1)

    def on_snapshot(self, record: SnapshotRecord, /) -> None:
        """Commit one snapshot, and the training steps before it.

        Args:
            record: The next scheduled snapshot.

        Raises:
            ValueError: If it is not the next one of the schedule, or its layers are not the file's.
            ResultsError: If the file cannot be written.
        """
        row = self._committed[Axis.SNAPSHOT]
        self._expect(Axis.SNAPSHOT, row, record.step)
        self.flush()
        rows = snapshot_row(self._columns[Axis.SNAPSHOT], self._extent, self._kappa_p, record)
        with self._guarded():
            write_at(self._handle, checksum(rows), self._offsets[CRC] + 4 * row)
            self._append(Axis.SNAPSHOT, rows, num_rows=1)

    def flush(self) -> None:
        """Commit the training steps that were taken.

        Raises:
            ResultsError: If the file cannot be written; the steps are kept for the next call.
        """
        self._last_flush = time.monotonic()
        if not self._pending:
            return
        steps = list(self._pending.values())
        names = (column.measure for column in self._columns[Axis.TRAIN])
        records = {name: [getattr(step, name) for step in steps] for name in names}
        with self._guarded():
            self._append(Axis.TRAIN, plain_rows(self._columns[Axis.TRAIN], records), len(steps))
        self._pending.clear()

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

    def _read_layout(self) -> None:
        with open_file(self.path) as file:
            if "condexp_sealed" in file.attrs:
                raise InputError(f"{self.path} is sealed: its run is complete")
            self._extent = read_extent(file)
            self._kappa_p = tuple(float(p) for p in file["layers/p"][:])
            self._columns = {axis: columns(self._extent, axis) for axis in Axis}
            self._steps = {axis: file[path][:] for axis, path in STEPS.items()}
            self._offsets = {}
            for dataset in datasets(self._extent):
                offset = file[dataset.path].id.get_offset()
                if dataset.num_bytes >= 8 and (offset is None or offset % 8):
                    raise InputError(
                        f"{self.path}: /{dataset.path} has no fixed place on 8 bytes; "
                        "the file was not created by condexp, or was rewritten"
                    )
                self._offsets[dataset.path] = offset
            for axis, name in COUNTERS.items():
                self._committed[axis] = int(file[name][()])

    def _guarded(self) -> AbstractContextManager[None]:
        return as_results_error(
            self.path,
            f"{self.num_committed} committed snapshots are intact; make room and repeat the call, "
            "or start the run again",
        )

    def _expect(self, axis: Axis, row: int, step: int) -> None:
        schedule = self._steps[axis]
        if row >= len(schedule):
            raise ValueError(f"{self.path}: no {axis} row is left for step {step}")
        if step != schedule[row]:
            raise ValueError(
                f"{self.path}: the next {axis} record is of step {schedule[row]}, not {step}"
            )

    def _append(self, axis: Axis, rows: list[bytes], num_rows: int) -> None:
        """Write the next rows of every column, then the counter that makes them final."""
        first = self._committed[axis]
        for column, data in zip(self._columns[axis], rows, strict=True):
            if data:
                write_at(self._handle, data, self._offsets[column.path] + first * column.row_bytes)
        self._flush_disk()
        counter = np.array(first + num_rows, dtype="<i8").tobytes()
        write_at(self._handle, counter, self._offsets[COUNTERS[axis]])
        self._flush_disk()
        self._committed[axis] = first + num_rows

    def _flush_disk(self) -> None:
        """Wait for the disk where that was asked for; the order of the two waits is the commit."""
        if self._sync:
            os.fdatasync(self._handle)


def checksum(rows: list[bytes]) -> bytes:
    """Return the stored checksum of a row.

    Args:
        rows: The bytes of its columns.

    Returns:
        Their CRC-32 on four bytes, never 0: that is a row not written.
    """
    value = 0
    for data in rows:
        value = zlib.crc32(data, value)
    return np.array(value or 1, dtype="<u4").tobytes()
