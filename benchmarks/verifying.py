"""Reading the measures of 1202 layers at 200 snapshots: verified, against the same unverified."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.timing import Measurement, alternate
from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.vocabulary import Matrix
from condexp.store.hdf5.checked_file import CheckedFile
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.offsets import read_offsets
from condexp.store.hdf5.row_checks import RowChecker, row_checksums
from condexp.store.hdf5.seal import seal_results
from condexp.store.reader import open_run
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import CRC, FileSpec

NUM_LAYERS, NUM_SNAPSHOTS = 1202, 200
MATRICES = (Matrix.INPUT, Matrix.GRAD_OUTPUT, Matrix.KFAC, Matrix.WEIGHT, Matrix.WEIGHT_GRAD)
TARGET = 0.05


def measure(num_pairs: int) -> list[Measurement]:
    """Time reading with and without its checks in turn, of a sealed and of a running run's file.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds of reading; the ratio is what the checks cost.
    """
    measurements = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.h5"
        _fill(path)
        for name in ("running", "sealed"):
            if name == "sealed":
                seal_results(path)
            read = _reading(path)
            times = alternate(read, _unchecked(read), num_pairs)
            title = f"reading {NUM_LAYERS} layers, {name}: the checks"
            measurements.append(Measurement(title, *times, TARGET, beyond=True))
    return measurements


def _fill(path: Path) -> None:
    """Write a file of random numbers, its rows under checksums."""
    layers = tuple(
        LayerInfo(f"layer{i}", "Conv2d", d_in=144, d_out=16, groups=1, positions=64, uses=1)
        for i in range(NUM_LAYERS)
    )
    spec = FileSpec(
        layers=layers,
        not_analysed=(),
        matrices=MATRICES,
        kappa_p=(0.5, 0.8, 0.9, 1.0),
        save_spectra=False,
        snapshot_steps=tuple(range(NUM_SNAPSHOTS)),
        eval_steps=(1,),
        num_train_steps=NUM_SNAPSHOTS,
        steps_per_epoch=1,
        num_samples=128,
        config_yaml="{}",
    )
    create_results(path, spec)
    noise = np.random.default_rng(0)
    offsets = read_offsets(path)
    columns = offsets.columns[Axis.SNAPSHOT]
    with path.open("r+b") as file:

        def put(place: int, data: bytes) -> None:
            file.seek(place)
            file.write(data)

        for row in range(NUM_SNAPSHOTS):
            rows = []
            for column in columns:
                data = np.full(column.row_bytes, 1, "i1").tobytes()
                if column.row_bytes % 8 == 0 and column.kind == "<f8":
                    data = noise.standard_normal(column.row_bytes // 8).tobytes()
                if column.path == "step":
                    data = np.int64(row).tobytes()
                if column.path == "epoch":
                    data = np.float64(row).tobytes()
                put(offsets.offsets[column.path] + row * column.row_bytes, data)
                rows.append(data)
            put(offsets.offsets[CRC] + 4 * len(columns) * row, row_checksums(rows).tobytes())
        put(offsets.offsets["n_committed"], np.int64(NUM_SNAPSHOTS).tobytes())


def _reading(path: Path) -> Callable[[], None]:
    def read() -> None:
        open_run(path).measures()

    return read


def _unchecked(read: Callable[[], None]) -> Callable[[], None]:
    def unchecked() -> None:
        with (
            patch.object(CheckedFile, "_check", lambda *_: None),
            patch.object(RowChecker, "check", lambda *_: None),
        ):
            read()

    return unchecked
