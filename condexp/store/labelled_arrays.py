"""The arrays of one group of a results file, with the names of their dimensions."""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from condexp.analysis.vocabulary import CERTIFICATES, LAYER_MEASURES, Matrix
from condexp.errors import InputError, choose
from condexp.store.hdf5.row_checks import RowChecker
from condexp.store.hdf5.structure import MAX_READ, attribute, texts
from condexp.store.schema.fields import COVERAGE_NAMES, ESTIMATED, Axis
from condexp.store.schema.layout import COUNTERS, STEPS

TABLE_BYTES = 3 << 28  # 1202 layers at 200 snapshots are half of that
MEASURES = (*LAYER_MEASURES, *CERTIFICATES, *(f"{matrix}_" for matrix in Matrix))


def num_committed(file: h5py.File, axis: Axis) -> int:
    """Return a counter; read before the rows, and after them.

    What is below it is final, unless the run goes back to its checkpoint meanwhile: then it sinks
    before rows are emptied.

    Args:
        file: The results file.
        axis: The kind of record.

    Returns:
        The number of its committed rows.

    Raises:
        ValueError: If it counts more rows than there are.
    """
    num = int(file[COUNTERS[axis]][()])
    if not 0 <= num <= len(file[STEPS[axis]]):
        raise ValueError(f"/{COUNTERS[axis]} is {num}, of {len(file[STEPS[axis]])} rows")
    return num


def read_table(
    file: h5py.File, name: str, only: Collection[str] = (), left_out: Collection[str] = ()
) -> xr.Dataset:
    """Return the committed rows of a group, its scales, epochs and coverage as coordinates.

    Args:
        file: The results file.
        name: The group.
        only: Measures that are enough; all where empty. A matrix's status comes with its rank,
            which tells it from an estimate's.
        left_out: Arrays that are not read; with a matrix's rank its status.

    Returns:
        Its arrays, labelled; statuses and dtypes by name.

    Raises:
        InputError: If one that is left out is none, or they are too many for the memory.
        DamageError: If one is damaged.
    """
    num, group = num_committed(file, Axis.SNAPSHOT), file[name]
    around = [each for each in ("epoch", *COVERAGE_NAMES) if each in file]
    for each in left_out:
        choose("variable", each, [*group, *around])
    left_out = {*left_out, *(each.replace("_rank", "_status") for each in left_out)}
    only = {*only, *(each.replace("_status", "_rank") for each in only)}
    names = [each for each in group if _is_wanted(each, only) and each not in left_out]
    stored = {each: group[each] for each in names}
    beside = {each: file[each] for each in around if each not in left_out}
    size = sum(map(_num_bytes, stored.values()))
    if size > TABLE_BYTES:
        raise InputError(
            f"{file.filename}: /{name} takes {size / 1e9:.1f} GB, too much to be read at once: "
            "'condexp export' writes it step by step"
        )
    checker = RowChecker(file, num)
    with ThreadPoolExecutor(1) as beside_reading:  # while the next array is read
        checks = []

        def checked(array: h5py.Dataset) -> NDArray[Any]:
            values = _read_rows(array, num)
            path = array.name.lstrip("/")
            checks.append(beside_reading.submit(checker.check, path, values))
            return values

        rows = {each: checked(array) for each, array in stored.items() if _by_step(array)}
        rows_beside = {each: checked(array) for each, array in beside.items()}
        for check in checks:
            check.result()
    final = num_committed(file, Axis.SNAPSHOT)
    arrays = {each: _labelled(array, rows.get(each)) for each, array in stored.items()}
    scales = {each: arrays.pop(each) for each, array in stored.items() if array.is_scale}
    coordinates = {each: _labelled(array, rows_beside[each]) for each, array in beside.items()}
    _name_estimates(arrays)
    return xr.Dataset(arrays, scales | coordinates).isel(step=slice(final))


def _read_rows(array: h5py.Dataset, num: int) -> NDArray[Any]:
    """Return so many rows; of a large array some at a time, which no crafted file can expand."""
    each = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    at_once = max(1, MAX_READ // max(1, each))
    if num <= at_once:
        rows: NDArray[Any] = array[:num]
        return rows
    return np.concatenate([
        array[first : min(first + at_once, num)] for first in range(0, num, at_once)
    ])


def _is_wanted(name: str, only: Collection[str]) -> bool:
    """Return whether an array is asked for; what describes the layers and the axes always is."""
    return not only or name in only or not name.startswith(MEASURES)


def _name_estimates(arrays: Mapping[str, xr.Variable]) -> None:
    for name, variable in arrays.items():
        rank = name.replace("_status", "_rank")
        if name.endswith("_status") and rank in arrays:  # not of what is known by its products
            statuses, ranks = variable.to_numpy(), arrays[rank]
            statuses[(statuses == "ok") & np.isnan(ranks.to_numpy())] = ESTIMATED


def _num_bytes(array: h5py.Dataset) -> int:
    """Return the memory of an array, codes as names."""
    codes = h5py.check_enum_dtype(array.dtype)
    each = 4 * max(map(len, codes)) if codes else array.dtype.itemsize
    return each * int(array.size)


def _by_step(dataset: h5py.Dataset) -> bool:
    return (
        bool(dataset.ndim)
        and (dataset.dims[0].keys() or [dataset.name.rpartition("/")[2]])[0] == "step"
    )


def _labelled(dataset: h5py.Dataset, rows: NDArray[Any] | None) -> xr.Variable:
    """Return an array, or the rows that were read, with its dimensions, codes turned into names."""
    # A scale has no scale of its own: it is named as its dimension.
    own = dataset.name.rpartition("/")[2]
    dims = [axis.keys()[0] if len(axis) else own for axis in dataset.dims]
    named = {name: attribute(dataset, name) for name in ("units", "long_name")}
    if h5py.check_string_dtype(dataset.dtype):
        return xr.Variable(dims, np.array(texts(dataset), dtype=np.str_), named)
    cut = dataset[:] if rows is None else rows
    if codes := h5py.check_enum_dtype(dataset.dtype):
        cut = np.array(sorted(codes, key=codes.__getitem__)).take(cut)
    elif own == "reused":
        cut = cut.astype(bool)
    return xr.Variable(dims, cut, named)
