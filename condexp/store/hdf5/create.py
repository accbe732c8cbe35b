"""Create a results file at once and whole; from then on libhdf5 never writes it."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from condexp.analysis.vocabulary import DENSITY_POINTS, WeightSharing
from condexp.store.disk import Owner, as_results_error, locked, replacing, reserve, write_at
from condexp.store.hdf5.checked_file import skeleton_trailer
from condexp.store.hdf5.file_objects import PAGE_BYTES, SparseFile
from condexp.store.hdf5.open import storage_type
from condexp.store.schema.fields import (
    FORMAT,
    REDUCED_CONVENTION,
    SCALE_CONVENTION,
    Axis,
    DatasetSpec,
    Kind,
)
from condexp.store.schema.layout import CHECKSUMS, COLUMN, COUNTERS, FileSpec, columns, datasets

FILL_BYTES = 1 << 20
# The oldest format with real dimension scales and no timestamps: no reader has to be new.
FILE_OPTIONS = {"libver": ("v108", "v108"), "alignment_threshold": 8, "alignment_interval": 8}


def create_results(path: Path, spec: FileSpec, owner: Owner | None = None) -> None:
    """Create ``results.h5`` with every array at its final place and size, NaN until written.

    The same specification gives the same bytes. A process killed in here leaves nothing, the older
    file, or a complete empty one.

    Args:
        path: The file; an older one is replaced. Its folder exists.
        spec: What the run will measure, and when.
        owner: The owner of the run's folder; None: the lock is taken for as long as this takes.

    Raises:
        ResultsError: If there is no room or no permission, or another process writes the file.
    """
    file, ranges, written = skeleton(spec)
    trailer = skeleton_trailer(file, written, spec.num_rows).to_bytes()
    outcome = f"Nothing was created; the file takes {file.size / 2**20:.1f} MiB"
    with (
        as_results_error(path, outcome),
        nullcontext(owner) if owner else locked(path) as owning,
        replacing(path, owner=owning) as handle,
    ):
        reserve(handle, file.size + len(trailer))
        _write(handle, file, ranges)
        write_at(handle, trailer, file.size)


def skeleton(
    spec: FileSpec,
) -> tuple[SparseFile, list[tuple[int, int]], list[tuple[int, int]]]:
    """Build the file in memory: all of it but the arrays that a run fills.

    Args:
        spec: What the run will measure, and when.

    Returns:
        The file, the byte ranges ``(start, length)`` that are to be NaN, and those ``(start, end)``
        that the run will write.
    """
    sparse, ranges, written = SparseFile(), [], []
    counted = {*COUNTERS.values(), *CHECKSUMS.values()}
    content = _content(spec)
    with h5py.File(sparse, "w", **FILE_OPTIONS) as file:
        file.attrs.update(_attributes(spec))
        described = datasets(spec)
        for dataset in described:
            stored = _add(file, dataset, content.get(dataset.path))
            if dataset.kind is Kind.FLOAT and dataset.path not in content and dataset.num_bytes:
                ranges.append((stored.id.get_offset(), dataset.num_bytes))
            fixed = dataset.axis is None or dataset.kind is Kind.INT
            if dataset.num_bytes and (not fixed or dataset.path in counted):
                start = stored.id.get_offset()
                written.append((start, start + dataset.num_bytes))
        attach_scales(file, described)
    return sparse, ranges, written


def _add(file: h5py.File, dataset: DatasetSpec, content: Any) -> h5py.Dataset:
    """Return a new dataset, its place in the file fixed from the start."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    if dataset.kind is not Kind.TEXT:
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    stored = file.create_dataset(
        dataset.path, dataset.shape, storage_type(dataset), dcpl=properties, track_times=False
    )
    if content is not None and (dataset.shape == () or dataset.num_bytes):
        stored[...] = content
    describe(stored, dataset)
    return stored


def describe(stored: h5py.Dataset, dataset: DatasetSpec) -> None:
    """Say in the file what a dataset holds.

    Args:
        stored: The dataset in the file.
        dataset: What it is.
    """
    stored.attrs["units"] = dataset.units
    stored.attrs["long_name"] = dataset.long_name
    if dataset.is_scale:
        stored.make_scale(dataset.name)


def attach_scales(file: h5py.File, described: Iterable[DatasetSpec]) -> None:
    """Give every dimension of every dataset its scale.

    Args:
        file: The file, which holds all the datasets.
        described: The datasets.
    """
    for dataset in described:
        if not dataset.is_scale:
            for axis, name in enumerate(dataset.dims):
                file[dataset.path].dims[axis].attach_scale(file[f"{dataset.group}/{name}"])


def _content(spec: FileSpec) -> dict[str, Any]:
    """Return everything that is known before the run, by path."""
    layers = spec.layers
    content: dict[str, Any] = {
        # Written, as HDF5 gives a scalar no place in the file before that.
        **dict.fromkeys(COUNTERS.values(), 0),
        "config": spec.config_yaml,
        COLUMN: [column.path for column in columns(spec.extent, Axis.SNAPSHOT)],
        "not_analysed": [f"{other.name}: {other.reason}" for other in spec.not_analysed],
        "train/train_step": np.arange(spec.num_train_steps),
        "eval/eval_step": spec.eval_steps,
        "layers/p": spec.kappa_p,
        "layers/type": [layer.type for layer in layers],
        "layers/d_in": [layer.d_in for layer in layers],
        "layers/d_out": [layer.d_out for layer in layers],
        "layers/groups": [layer.groups for layer in layers],
        "layers/num_rows": [spec.num_samples * layer.rows_per_sample for layer in layers],
        "layers/positions": [layer.positions for layer in layers],
        "layers/reused": [layer.uses > 1 for layer in layers],
        "layers/layer": [layer.name for layer in layers],
    }
    extent = spec.extent
    for matrix, lengths in extent.lengths.items():
        content[f"layers/n_{matrix}"] = lengths
    for group in ("layers", "network"):
        content[f"{group}/top"] = np.arange(extent.top_k)
        content[f"{group}/point"] = DENSITY_POINTS
    if extent.network_length:
        content["network/eig"] = np.arange(extent.network_length)
        content["network/p"] = spec.kappa_p
    for dataset in datasets(spec):
        if dataset.name == "step":
            content[dataset.path] = spec.snapshot_steps
        if dataset.members:
            content[f"{dataset.group}/layer"] = [layers[i].name for i in dataset.members]
            content[f"{dataset.group}/layer_index"] = dataset.members
            content[f"{dataset.group}/eig"] = np.arange(dataset.shape[2])
    return content


def _attributes(spec: FileSpec) -> dict[str, Any]:
    """Return the attributes of the file; booleans as a byte, which every reader knows."""
    own: dict[str, Any] = {
        key: np.int8(value) if isinstance(value, bool) else value
        for key, value in spec.attributes.items()
    }
    if own.get("weight_sharing") == WeightSharing.REDUCE:
        own["scale_convention"] = REDUCED_CONVENTION
    if spec.num_signals > 1:
        own["num_signals"] = np.int64(spec.num_signals)
    return {
        "Conventions": "CF-1.10",
        "condexp_format": FORMAT,
        "condexp_format_version": np.int64(spec.extent.version),
        "config_sha256": hashlib.sha256(spec.config_yaml.encode()).hexdigest(),
        "scale_convention": SCALE_CONVENTION,
        "steps_per_epoch": np.int64(spec.steps_per_epoch),
        **own,
    }


def _write(handle: int, file: SparseFile, ranges: list[tuple[int, int]]) -> None:
    """Write the file in memory and the NaN to disk."""
    for page, content in sorted(file.pages.items()):
        start = page * PAGE_BYTES
        write_at(handle, memoryview(content)[: file.size - start], start)
    for start, chunk in _fills(ranges):
        write_at(handle, chunk, start)


def _fills(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    """Yield the byte ranges in pieces of NaN, each with its place."""
    block = memoryview(np.full(FILL_BYTES // 8, np.nan, dtype="<f8").tobytes())
    for start, length in ranges:
        for offset in range(0, length, FILL_BYTES):
            yield start + offset, block[: length - offset]
