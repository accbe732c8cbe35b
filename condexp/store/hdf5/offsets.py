"""The byte offsets of a results file that is written in place; clears rows that are taken back."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condexp.errors import InputError
from condexp.store.disk import write_at
from condexp.store.hdf5.open import open_file, read_file_shape
from condexp.store.schema.fields import VERSION, WRITTEN, Axis, DatasetSpec, FileShape, Kind
from condexp.store.schema.layout import (
    CHECKSUMS,
    COUNTERS,
    SEALED,
    STEPS,
    FileSpec,
    columns,
    datasets,
)
from condexp.training.events import RowCounts

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class DatasetOffsets:
    """A results file as its writer sees it.

    Attributes:
        extent: What decides names and shapes.
        kappa_p: The fractions p of the condition numbers.
        columns: The datasets that a record of each kind fills a row of.
        steps: The schedule of each kind of record.
        offsets: The byte at which each dataset begins.
        committed: The final rows of each kind when the file was opened.
    """

    extent: FileShape
    kappa_p: tuple[float, ...]
    columns: Mapping[Axis, tuple[DatasetSpec, ...]]
    steps: Mapping[Axis, NDArray[np.int64]]
    offsets: Mapping[str, int]
    committed: Mapping[Axis, int]


def read_offsets(path: Path) -> DatasetOffsets:
    """Find the offsets of a results file.

    Args:
        path: The file.

    Returns:
        Its offsets.

    Raises:
        InputError: If it is not a results file of the version that is written, is sealed, or was
            rewritten by HDF5.
    """
    with open_file(path) as file:
        if SEALED in file.attrs:
            raise InputError(f"{path} is sealed: its run is complete")
        extent = read_file_shape(file)
        if extent.version not in WRITTEN:
            raise InputError(older_version(path, extent.version))
        offsets = {}
        for dataset in datasets(extent):
            offset = file[dataset.path].id.get_offset()
            if dataset.num_bytes >= 8 and (offset is None or offset % 8):
                raise InputError(
                    f"{path}: /{dataset.path} has no fixed place on 8 bytes; "
                    "the file was not created by condexp, or was rewritten"
                )
            offsets[dataset.path] = offset
        return DatasetOffsets(
            extent,
            tuple(float(p) for p in file["layers/p"][:]),
            {axis: columns(extent, axis) for axis in Axis},
            {axis: file[name][:] for axis, name in STEPS.items()},
            offsets,
            {axis: int(file[name][()]) for axis, name in COUNTERS.items()},
        )


def check_copyable(path: Path, spec: FileSpec) -> None:
    """Refuse a results file whose rows another one cannot begin with.

    Args:
        path: The file.
        spec: What the other one is created from.

    Raises:
        InputError: If it is of an older version, or of other layers or measures.
    """
    with open_file(path) as file:
        found = read_file_shape(file)
    if found.version not in WRITTEN:
        raise InputError(older_version(path, found.version))
    rows = [
        [(each.path, each.shape[1:]) for each in datasets(shape) if each.axis is not None]
        for shape in (found, spec)
    ]
    if rows[0] != rows[1]:
        raise InputError(f"{path} has other layers or measures than this condexp would write.")


def older_version(path: Path, version: int) -> str:
    """Say why nothing is added to a file of an older version.

    Args:
        path: The file.
        version: Its version.

    Returns:
        The message.
    """
    return (
        f"{path} has format version {version}, which can be read but not added to: rows written "
        f"now have intervals, certificates and checksums, and belong to version {VERSION}"
    )


def by_axis(counts: RowCounts) -> dict[Axis, int]:
    """Return the rows of each kind.

    Args:
        counts: The rows.

    Returns:
        The same by the kind of record.
    """
    return {
        Axis.SNAPSHOT: counts.snapshots,
        Axis.TRAIN: counts.steps,
        Axis.EVAL: counts.evaluations,
    }


def clear_rows(handle: int, offsets: DatasetOffsets, axis: Axis, first: int) -> None:
    """Make the rows from one on what they were when the file was created, whatever they hold.

    Only what differs is written: most of them were never filled.

    Args:
        handle: The file.
        offsets: Its offsets.
        axis: The kind of record.
        first: The first row that is taken back; the counter says so already.

    Raises:
        OSError: If the file cannot be read or written.
    """
    for column in _filled(offsets, axis):
        unwritten = np.full(BLOCK_BYTES // 8, np.nan).tobytes()
        if column.kind is not Kind.FLOAT:
            unwritten = bytes(BLOCK_BYTES)
        begin = first * column.row_bytes
        for offset in range(begin, column.num_bytes, BLOCK_BYTES):
            place = offsets.offsets[column.path] + offset
            clean = unwritten[: column.num_bytes - offset]
            if os.pread(handle, len(clean), place) != clean:
                write_at(handle, clean, place)


def _filled(offsets: DatasetOffsets, axis: Axis) -> Iterator[DatasetSpec]:
    """Yield the columns that are empty until their records come; steps are there already."""
    yield from (each for each in offsets.columns[axis] if each.kind is not Kind.INT)
    yield next(each for each in datasets(offsets.extent) if each.path == CHECKSUMS[axis])
