"""Seal a finished run's results: the same arrays, cut to what was committed, and compressed."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from condexp.errors import InputError
from condexp.store.disk import Owner, ResultsError, as_results_error, replacing, write_at
from condexp.store.hdf5.checked_file import sealed_trailer
from condexp.store.hdf5.create import FILE_OPTIONS, attach_scales, describe
from condexp.store.hdf5.file_objects import DiskFile
from condexp.store.hdf5.open import open_file, read_file_shape, storage_type
from condexp.store.hdf5.validate import validate_results
from condexp.store.schema.fields import Axis, DatasetSpec, Kind
from condexp.store.schema.layout import COUNTERS, SEALED, STEPS, datasets

# A chunk's index takes 2 kB: smaller arrays stay as they are, their rows have a checksum already.
MIN_CHUNK, CHUNK, MAX_CHUNK = 1 << 16, 1 << 18, 1 << 20
FILTERS = {"shuffle": True, "compression": "gzip", "compression_opts": 4, "fletcher32": True}


def is_sealed(path: Path) -> bool:
    """Return whether a results file is sealed, so that nothing can be added to it.

    Args:
        path: The file.

    Returns:
        Whether it is.

    Raises:
        InputError: If it is not a results file.
    """
    with open_file(path) as file:
        return SEALED in file.attrs


def seal_results(path: Path, owner: Owner | None = None) -> None:
    """Replace a results file by its sealed form; whatever goes wrong, one of both is there.

    The same content gives the same bytes. Its writer may still be open, and has to have committed
    all: nothing can be added any more.

    Args:
        path: The file.
        owner: The owner of the run's folder.

    Raises:
        InputError: If it is no results file, or is sealed already.
        LostFolderError: If the folder is no longer its owner's.
        ResultsError: If it cannot be written, or what was written is not what the file holds.
    """
    outcome = "The results are complete, but neither cut nor compressed"
    with open_file(path) as live, as_results_error(path, outcome):
        if SEALED in live.attrs:
            raise InputError(f"{path} is sealed already")
        sizes = {axis: int(live[name][()]) for axis, name in COUNTERS.items()}
        scheduled = {axis: len(live[name]) for axis, name in STEPS.items()}
        extent = replace(
            read_file_shape(live),
            num_snapshots=sizes[Axis.SNAPSHOT],
            num_train_steps=sizes[Axis.TRAIN],
            num_evals=sizes[Axis.EVAL],
        )
        described = datasets(extent)
        with replacing(path, owner=owner) as handle:
            file = DiskFile(handle)
            _write(live, described, file)
            file.check()
            if extent.version > 2:
                trailer = sealed_trailer(handle, file.size, sizes, scheduled)
                write_at(handle, trailer.to_bytes(), file.size)
            _verify(live, described, path.with_name(f"{path.name}.partial"))


def chunk_shape(shape: tuple[int, ...], element_bytes: int) -> tuple[int, ...]:
    """Choose chunks of 64 kB to 1 MB: several whole rows, or a part of one.

    Args:
        shape: Shape of an array of at least 64 kB.
        element_bytes: Size of an element.

    Returns:
        Shape of its chunks.

    >>> chunk_shape((1000, 20, 512), 8), chunk_shape((10, 2, 300000), 8)
    ((3, 20, 512), (1, 1, 32768))
    """
    row_bytes = element_bytes * math.prod(shape[1:])
    if row_bytes > MAX_CHUNK:
        return (1, *chunk_shape(shape[1:], element_bytes))
    return (min(shape[0], max(1, CHUNK // row_bytes)), *shape[1:])


def _write(live: h5py.File, described: tuple[DatasetSpec, ...], target: DiskFile) -> None:
    """Write the sealed file; stops at the first thing that the disk refuses."""
    with h5py.File(target, "w", **FILE_OPTIONS) as sealed:
        sealed.attrs.update(live.attrs)
        sealed.attrs[SEALED] = np.int8(1)
        for dataset in described:
            stored = _add(sealed, dataset)
            for region in _regions(dataset):
                stored[region] = live[dataset.path][region]
            describe(stored, dataset)
            target.check()
        attach_scales(sealed, described)


def _add(file: h5py.File, dataset: DatasetSpec) -> h5py.Dataset:
    options: dict[str, Any] = {}
    if dataset.kind is not Kind.TEXT and dataset.num_bytes >= MIN_CHUNK:
        chunks = chunk_shape(dataset.shape, dataset.kind.num_bytes)
        options = {"chunks": chunks, **FILTERS}
    return file.create_dataset(
        dataset.path, dataset.shape, storage_type(dataset), track_times=False, **options
    )


def _regions(dataset: DatasetSpec) -> Iterator[tuple[slice, ...]]:
    """Yield the parts of an array that are copied at once: whole chunks, and never much."""
    if not dataset.num_bytes:
        return  # no elements
    chunks = chunk_shape(dataset.shape, dataset.kind.num_bytes) if dataset.shape else ()
    axes = zip(dataset.shape, chunks, strict=True)
    yield from product(*(_cuts(size, part) for size, part in axes))


def _cuts(size: int, part: int) -> list[slice]:
    return [slice(start, min(start + part, size)) for start in range(0, size, part)]


def _verify(live: h5py.File, described: tuple[DatasetSpec, ...], partial: Path) -> None:
    """Read the sealed file back, and compare everything with the live one.

    Raises:
        ResultsError: If anything differs.
    """
    problems = validate_results(partial)
    with open_file(partial) as sealed:
        kept = {key: value for key, value in sealed.attrs.items() if key != SEALED}
        if kept.keys() != live.attrs.keys() or any(live.attrs[k] != v for k, v in kept.items()):
            problems.append("its attributes differ")
        problems += [
            f"/{dataset.path} differs"
            for dataset in described
            if not all(
                _same(live[dataset.path], sealed[dataset.path], r) for r in _regions(dataset)
            )
        ]
    if problems:
        raise ResultsError(f"{partial} was not sealed as it was to be: {problems[0]}")


def _same(live: h5py.Dataset, sealed: h5py.Dataset, region: tuple[slice, ...]) -> bool:
    """Return whether a part of two arrays is the same to the last bit."""
    one, two = np.asarray(live[region]), np.asarray(sealed[region])
    if one.dtype == object:
        return np.array_equal(one, two)
    return one.dtype == two.dtype and one.tobytes() == two.tobytes()
