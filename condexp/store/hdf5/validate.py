"""Check a results file against its format: names, shapes, scales, schedule and checksums."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path

import h5py
import numpy as np

from condexp.errors import DamageError, InputError
from condexp.store.hdf5.crc import crc32
from condexp.store.hdf5.open import check_blocks, open_file, read_file_shape, storage_type
from condexp.store.hdf5.row_checks import RowChecker, read_plain_rows, row_blocks
from condexp.store.hdf5.structure import texts
from condexp.store.schema.fields import Axis, DatasetSpec
from condexp.store.schema.layout import COLUMN, COUNTERS, CRC, STEPS, columns, datasets


def validate_results(path: Path, counts: Mapping[Axis, int] | None = None) -> list[str]:
    """Check a results file, also one that is being written.

    Args:
        path: The file.
        counts: How many rows of each kind to look at; None: those that are committed.

    Returns:
        What is wrong with it, one sentence each; empty where it is valid. No file makes it raise.
    """
    try:
        check_blocks(Path(path))
        with open_file(Path(path)) as file:
            # What is committed can only grow: first the counters, then the rows under them.
            counts = counts or {axis: int(file[name][()]) for axis, name in COUNTERS.items()}
            # Only a file that has the right shape can be read further.
            return list(_schema(file)) or [
                *_counters(file, counts),
                *_schedule(file, counts),
                *_rows(file, counts),
            ]
    except InputError as error:
        return [str(error)]


def check_structure(path: Path) -> None:
    """Refuse a results file that lacks an array, or has one of another shape or type.

    Args:
        path: The file.

    Raises:
        DamageError: If it is no results file, or not as its own sizes call for.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DamageError(f"no results file at {path}: {error.strerror}") from error
    problem = _first_problem(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    if problem is not None:
        raise DamageError(problem)


@lru_cache(maxsize=1 << 14)
def _first_problem(path: Path, _version: tuple[int, ...]) -> str | None:
    """Return the first that is wrong with the structure of a version of a file.

    A report asks of the same runs for each of its figures.
    """
    lost: tuple[str, ...] = ()
    for _ in range(2):  # what is damaged is told of where it is read, and not looked at here
        try:
            with open_file(path) as file:
                for problem in _schema(file, lost):
                    return f"{path} is damaged: {problem}"
        except DamageError as damage:
            if not damage.arrays:
                return str(damage)
            if lost:
                return None  # what the sizes are read from is among it
            lost = damage.arrays
        except InputError as error:
            return str(error)
    return None


def _arrays(
    group: h5py.Group, seen: set[int], lost: Collection[str] = (), where: str = ""
) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield path and array of all that lie below a group, but for those that are lost.

    Raises:
        ValueError: If one has two names, so that this could go on for ever.
    """
    for name in group:
        if where + name in lost:
            continue
        item = group[name]
        place = h5py.h5o.get_info(item.id).addr
        if place in seen:
            raise ValueError(f"/{where}{name} has another name as well")
        seen.add(place)
        if isinstance(item, h5py.Dataset):
            yield where + name, item
        else:
            yield from _arrays(item, seen, lost, f"{where}{name}/")


def _schema(file: h5py.File, lost: Collection[str] = ()) -> Iterator[str]:
    """Yield where a dataset, but for those that are lost, is not what the sizes call for."""
    expected = {
        dataset.path: dataset
        for dataset in datasets(read_file_shape(file))
        if not any(f"{dataset.path}/".startswith(f"{path}/") for path in lost)
    }
    found = dict(_arrays(file, {h5py.h5o.get_info(file.id).addr}, lost))
    for path in sorted(expected.keys() - found.keys()):
        yield f"/{path} is missing"
    for path in sorted(found.keys() - expected.keys()):
        yield f"/{path} does not belong to the format"
    for path in sorted(expected.keys() & found.keys()):
        yield from _dataset(found, expected[path])
    if "config" in lost:
        return
    if hashlib.sha256(file["config"][()]).hexdigest() != file.attrs.get("config_sha256"):
        yield "/config is not the configuration that the attribute config_sha256 names"


def _dataset(arrays: Mapping[str, h5py.Dataset], expected: DatasetSpec) -> Iterator[str]:
    """Yield where one dataset is not as described."""
    found = arrays[expected.path]
    where = f"/{expected.path}"
    if found.shape != expected.shape:
        yield f"{where} has shape {found.shape}, not {expected.shape}"
        return
    kind = storage_type(expected)
    codes = h5py.check_enum_dtype(found.dtype), h5py.check_enum_dtype(kind)
    if found.dtype != kind or codes[0] != codes[1]:
        yield f"{where} has elements {found.dtype}, not {kind}"
    for name in ("units", "long_name"):
        if not found.attrs.get(name):
            yield f"{where} has no {name}"
    if expected.is_scale:
        if not found.is_scale:
            yield f"{where} is not a dimension scale"
        return
    for axis, name in enumerate(expected.dims):
        scale = arrays.get(f"{expected.group}/{name}".lstrip("/"))
        # A scale that is none is told of as such; HDF5 fails on what is attached to it.
        if scale is not None and scale.is_scale and [*found.dims[axis].values()] != [scale]:
            given = ", ".join(found.dims[axis].keys()) or "none"
            yield f"{where}, dimension {axis}: its scale is {given}, not {scale.name}"


def _counters(file: h5py.File, counts: Mapping[Axis, int]) -> Iterator[str]:
    """Yield the counters that say more than there is room for."""
    for axis, count in counts.items():
        if not 0 <= count <= len(file[STEPS[axis]]):
            yield f"/{COUNTERS[axis]} is {count}, the file has {len(file[STEPS[axis]])} rows"


def _schedule(file: h5py.File, counts: Mapping[Axis, int]) -> Iterator[str]:
    """Yield where steps or epochs do not go forward, or groups tell different steps."""
    for path in STEPS.values():
        if np.any(np.diff(file[path][:]) <= 0):
            yield f"/{path} does not increase"
    for dataset in datasets(read_file_shape(file)):
        if dataset.name == "step" and not np.array_equal(file[dataset.path][:], file["step"][:]):
            yield f"/{dataset.path} differs from /step"
    for path, axis in (("epoch", Axis.SNAPSHOT), ("eval/epoch", Axis.EVAL)):
        epochs = file[path][: max(0, counts[axis])]
        if not np.all(np.isfinite(epochs)) or np.any(np.diff(epochs) < 0):
            yield f"/{path} does not increase over the committed rows"
    rates = file["train/lr"][: max(0, counts[Axis.TRAIN])]
    if np.any(np.isinf(rates)):  # NaN: a loop of somebody's own has not told it
        row = int(np.flatnonzero(np.isinf(rates))[0])
        yield f"/train/lr, committed row {row}: {rates[row]} is no learning rate"


def _rows(file: h5py.File, counts: Mapping[Axis, int]) -> Iterator[str]:
    """Yield the committed rows whose bytes do not match their checksum."""
    if int(file.attrs["condexp_format_version"]) > 2:
        yield from _rows_by_column(file, counts)
        return
    stored = file[CRC][: max(0, counts[Axis.SNAPSHOT])]
    computed = [0] * len(stored)
    for column in columns(read_file_shape(file), Axis.SNAPSHOT):
        for first, block in row_blocks(file[column.path], len(stored)):
            for row, values in enumerate(block, start=first):
                computed[row] = crc32(values.tobytes(), computed[row])
    for row, (value, expected) in enumerate(zip(computed, stored, strict=True)):
        if (value or 1) != expected:
            step = int(file["step"][row])
            yield f"snapshot {row} (step {step}): its bytes do not match their checksum"


def _rows_by_column(file: h5py.File, counts: Mapping[Axis, int]) -> Iterator[str]:
    """Yield the same of a file with a checksum of every array's row."""
    extent, num = read_file_shape(file), max(0, counts[Axis.SNAPSHOT])
    checker = RowChecker(file, num, fixed=True)
    own = columns(extent, Axis.SNAPSHOT)
    if texts(file[COLUMN]) != tuple(column.path for column in own):
        yield f"/{COLUMN} does not name the arrays of snapshots"
        return
    for column in own:
        for first, values in row_blocks(file[column.path], num):
            for row in checker.bad_rows(column.path, values, first):
                step = int(file["step"][row])
                yield (
                    f"/{column.path}, snapshot {row} (step {step}): its bytes do not match "
                    "their checksum"
                )
    for axis in (Axis.TRAIN, Axis.EVAL):
        names = [column.name for column in columns(extent, axis)]
        try:
            read_plain_rows(file, axis, names, partial(max, 0, counts[axis]))
        except InputError as damage:
            yield str(damage)
