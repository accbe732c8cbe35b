"""The checksums of the rows that a run commits: what is read of a running run is compared."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from condexp.errors import DamageError
from condexp.store.hdf5.crc import crc32
from condexp.store.hdf5.structure import MAX_READ, refuse_large, texts
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import CHECKSUMS, COLUMN, COUNTERS, CRC, SEALED

BLOCK_BYTES = 1 << 24


def is_live(file: h5py.File) -> bool:
    """Return whether rows have to be checked one by one: a sealed file's blocks have been.

    Args:
        file: An open results file.

    Returns:
        Whether it is one that a run writes, of a version with a checksum of every row.
    """
    return COLUMN in file and SEALED not in file.attrs


def row_checksums(rows: Sequence[bytes | memoryview]) -> NDArray[np.uint32]:
    """Return the checksums of a snapshot's row, one a column.

    Args:
        rows: The bytes of its columns.

    Returns:
        Their CRC-32, never 0: that is a row not written.
    """
    return np.array([crc32(data) or 1 for data in rows], dtype="<u4")


def running_checksums(columns: list[bytes], before: int) -> NDArray[np.uint32]:
    """Return the checksums of consecutive training steps or evaluations.

    Each is the CRC-32 of all rows up to it, so that all are checked at once.

    Args:
        columns: The bytes of each column, 8 a row.
        before: The checksum of the row before; 0 before the first.

    Returns:
        One a row.
    """
    table = np.stack([np.frombuffer(column, "<u8") for column in columns], axis=1)
    found = []
    for row in table:
        before = crc32(row.tobytes(), before)
        found.append(before)
    return np.array(found, dtype="<u4")


def read_plain_rows(
    file: h5py.File, axis: Axis, names: Iterable[str], count: Callable[[], int]
) -> dict[str, NDArray[Any]]:
    """Read training steps or evaluations, and compare them with their checksum.

    Args:
        file: An open results file.
        axis: Which of them.
        names: All columns of such a record, in file order.
        count: Returns how many rows are final; asked before they are read, and after: a run that
            goes back to its checkpoint lowers the counter before it empties rows.

    Returns:
        The committed rows of each column.

    Raises:
        DamageError: If they are not what was committed.
    """
    num, live, names = count(), is_live(file), tuple(names)
    refuse_large(f"/{axis}", 8 * num * len(names), 2 * MAX_READ)
    columns = {name: file[f"{axis}/{name}"][:num] for name in names}
    stored = file[CHECKSUMS[axis]][:num] if live else np.empty(0, dtype=np.uint32)
    final = min(num, count())
    columns = {name: values[:final] for name, values in columns.items()}
    if live and final and columns:
        _check_plain_rows(columns, stored[:final], axis)
    return columns


def _check_plain_rows(
    columns: Mapping[str, NDArray[Any]], stored: NDArray[np.uint32], axis: Axis
) -> None:
    """Compare rows with their checksums.

    Raises:
        DamageError: If they are not what was committed.
    """
    table = np.stack([values.view("<u8") for values in columns.values()], axis=1)
    if crc32(table.data) == stored[-1]:
        return
    value, good = 0, 0
    for row, expected in zip(table, stored, strict=True):
        value = crc32(row.tobytes(), value)
        if value != expected:
            break
        good += 1
    raise DamageError(
        f"the results are damaged: row {good} of /{axis} does not match its checksum; the {good} "
        "rows before it are undamaged"
    )


class RowChecker:
    """Compares the rows of snapshots that are read with their checksums.

    Args:
        file: An open results file.
        num_rows: How many rows may be asked for.
        fixed: Whether that many are final, come what may; else the counter is asked once more
            before damage is told of: a run that goes back to its checkpoint lowers it before it
            empties rows.
    """

    def __init__(self, file: h5py.File, num_rows: int, *, fixed: bool = False) -> None:
        self._counter: h5py.Dataset | None = None
        self._stored: Mapping[str, NDArray[np.uint32]] = {}
        if is_live(file):
            self._counter = None if fixed else file[COUNTERS[Axis.SNAPSHOT]]
            table = file[CRC][:num_rows]
            names = texts(file[COLUMN])
            self._stored = {name: table[:, index] for index, name in enumerate(names)}

    def bad_rows(self, path: str, values: NDArray[Any], first: int = 0) -> Iterator[int]:
        """Yield the rows of a column that are not what was committed.

        Args:
            path: Path of the column in the file.
            values: Some of its rows, as they are stored.
            first: The place of the first of them.

        Yields:
            Their places.
        """
        stored = self._stored.get(path)
        if stored is None:
            return
        content = np.ascontiguousarray(values).ravel().view(np.uint8).data
        size = len(content) // max(1, len(values))
        rows = [content[row * size : (row + 1) * size] for row in range(len(values))]
        found = row_checksums(rows)
        for row in (first + np.flatnonzero(found != stored[first : first + len(rows)])).tolist():
            if self._counter is None or row < int(self._counter[()]):
                yield row

    def check(self, path: str, values: NDArray[Any], first: int = 0) -> None:
        """Make sure that rows of a column are what was committed.

        Args:
            path: Path of the column in the file.
            values: Some of its rows, as they are stored.
            first: The place of the first of them.

        Raises:
            DamageError: If one is not.
        """
        bad = list(self.bad_rows(path, values, first))
        if bad:
            raise DamageError(
                f"the results are damaged: /{path}, snapshot{'s' * (len(bad) > 1)} "
                f"{', '.join(map(str, bad))}; what is read without this error is undamaged",
                [path],
            )


def check_all_rows(file: h5py.File, path: str, num_rows: int) -> None:
    """Make sure that all rows of a column are what was committed, a few at a time.

    Args:
        file: An open results file.
        path: Path of the column.
        num_rows: How many rows are final.

    Raises:
        DamageError: If one is not.
    """
    if is_live(file):
        checker, array = RowChecker(file, num_rows), file[path]
        for first, values in row_blocks(array, num_rows):
            checker.check(path, values, first)


def row_blocks(array: h5py.Dataset, num_rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield an array's first rows, a few at a time: spectra may exceed the memory.

    Args:
        array: The array.
        num_rows: How many rows.

    Yields:
        The place of the first of them, and the rows.
    """
    row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    at_once = max(1, BLOCK_BYTES // max(1, row_bytes))
    for first in range(0, num_rows, at_once):
        yield first, array[first : min(first + at_once, num_rows)]
