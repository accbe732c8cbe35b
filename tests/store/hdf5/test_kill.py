"""SIGKILL at any moment loses nothing that was committed, and readers may look on all the while."""

import os
import random
import signal
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from condexp.analysis.vocabulary import Matrix
from condexp.store.hdf5 import writer as writer_module
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.encoding import snapshot_row
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import open_run
from condexp.store.schema.fields import Axis, DatasetSpec, FileShape
from condexp.store.schema.layout import FileSpec, columns
from condexp.training.events import SnapshotRecord
from tests.store.hdf5.processes import exit_code, forked
from tests.store.records import (
    KAPPA_P,
    LAYERS,
    few_columns,
    make_spec,
    snapshot_record,
    step_record,
)
from tests.waiting import until_a_random_moment

NUM_KILLS = 50
NUM_SNAPSHOTS = 500
MOST_AHEAD = 100  # commits of a child while its parent comes to kill it
NUM_DISTINCT = 6
EVERY = 2
# Few columns, so that the checks after fifty kills take seconds.
SPEC = make_spec(
    NUM_SNAPSHOTS, EVERY, layers=LAYERS[1:], matrices=(Matrix.GRAD_OUTPUT, Matrix.WEIGHT)
)


@pytest.fixture(scope="module")
def encoded() -> list[list[bytes]]:
    """The rows of a few snapshots: encoding takes longer than writing, which is to be killed."""
    extent = SPEC.extent
    own = columns(extent, Axis.SNAPSHOT)
    records = [snapshot_record(SPEC, EVERY * i) for i in range(NUM_DISTINCT)]
    return [snapshot_row(own, extent, KAPPA_P, record) for record in records]


@pytest.fixture
def prompt(encoded: list[list[bytes]], monkeypatch: pytest.MonkeyPatch) -> list[SnapshotRecord]:
    """Let writers take the rows as encoded; the records to write, in order."""

    def row(
        own: tuple[DatasetSpec, ...],
        extent: FileShape,
        p: tuple[float, ...],
        record: SnapshotRecord,
    ) -> list[bytes]:
        own_step, own_epoch = struct.pack("<q", record.step), struct.pack("<d", record.epoch)
        return [own_step, own_epoch, *encoded[record.step // EVERY % NUM_DISTINCT][2:]]

    monkeypatch.setattr(writer_module, "snapshot_row", row)
    snapshot = snapshot_record(SPEC, 0).snapshot
    return [SnapshotRecord(step, step / 4, snapshot) for step in SPEC.snapshot_steps]


def write_all(
    path: Path,
    records: list[SnapshotRecord],
    pipe: int,
    committed: Callable[[int], object] = lambda _: None,
) -> None:
    """Append back to back, and acknowledge every commit."""
    with ResultsWriter(path) as writer:
        for number, record in enumerate(records, start=1):
            writer.on_snapshot(record)
            os.write(pipe, struct.pack("<q", number))
            writer.on_step(step_record(2 * number - 2))
            writer.on_step(step_record(2 * number - 1))
            committed(number)


def last_acknowledged(pipe: int, told: bytes = b"") -> int:
    """The number of the last commit that the child lived to tell."""
    while part := os.read(pipe, 1 << 16):
        told += part
    return int(struct.unpack("<q", told[-8:])[0]) if told else 0


def check_rows(file: h5py.File, num: int, encoded: list[list[bytes]]) -> None:
    """Compare the committed rows of every column with what was to be written, byte for byte."""
    for place, column in [*enumerate(columns(SPEC.extent, Axis.SNAPSHOT))][2:]:
        rows = file[column.path][:num]
        for kind in range(NUM_DISTINCT):
            found = rows[kind::NUM_DISTINCT]
            expected = np.frombuffer(encoded[kind][place], rows.dtype.str).reshape(rows.shape[1:])
            # NaN is equal to NaN here.
            np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    np.testing.assert_array_equal(file["step"][:num], EVERY * np.arange(num))
    np.testing.assert_array_equal(file["epoch"][:num], EVERY * np.arange(num) / 4)


def test_fifty_kills_lose_no_committed_snapshot(
    tmp_path: Path, prompt: list[SnapshotRecord], encoded: list[list[bytes]]
) -> None:
    moments = random.Random(0)
    fresh, path = tmp_path / "fresh.h5", tmp_path / "results.h5"
    create_results(fresh, SPEC)
    empty = fresh.read_bytes()
    path.write_bytes(empty)
    outlet, inlet = os.pipe()
    with forked(lambda: write_all(path, prompt, inlet)) as child:
        os.close(inlet)
        assert last_acknowledged(outlet) == NUM_SNAPSHOTS
        assert exit_code(child) == 0
    os.close(outlet)
    assert validate_results(path) == []

    reached = []
    for number in range(NUM_KILLS):
        path.write_bytes(empty)
        outlet, inlet = os.pipe()
        # Most from some commit on; a few while the file is being opened.
        least = moments.randrange(1, NUM_SNAPSHOTS - MOST_AHEAD) if number % 10 else 0

        def stay(committed: int, last: int = least + MOST_AHEAD) -> None:
            if committed == last:
                signal.pause()

        with forked(partial(write_all, path, prompt, inlet, stay)) as child:
            os.close(inlet)
            told = b""
            while len(told) < 8 * least:
                told += os.read(outlet, 1 << 16)
            until_a_random_moment(moments, 0.01)
            os.kill(child, signal.SIGKILL)
            assert exit_code(child) == -signal.SIGKILL
        acknowledged = last_acknowledged(outlet, told)
        os.close(outlet)
        with h5py.File(path) as file:
            num = int(file["n_committed"][()])
            # One may have been committed and its message not sent.
            assert least <= acknowledged <= num <= acknowledged + 1
            check_rows(file, num, encoded)
            trained = int(file["n_train_committed"][()])
            assert trained >= 2 * (num - 1)
            assert not np.isnan(file["train/lr"][:trained]).any()
        assert validate_results(path) == []
        reached.append(num)
    # The kills did fall within the writing, not only before or after it.
    assert sum(0 < num < NUM_SNAPSHOTS for num in reached) >= NUM_KILLS * 9 // 10

    # The run can go on from there, to the same bytes.
    whole = tmp_path / "whole.h5"
    whole.write_bytes(empty)
    with ResultsWriter(whole) as writer:
        _finish(writer, prompt, 0)
    with ResultsWriter(path) as writer:
        _finish(writer, prompt, trained)
    assert path.read_bytes() == whole.read_bytes()


def _finish(writer: ResultsWriter, records: list[SnapshotRecord], trained: int) -> None:
    for record in records[writer.num_committed :]:
        writer.on_snapshot(record)
    for step in range(trained, EVERY * NUM_SNAPSHOTS):
        writer.on_step(step_record(step))


def test_readers_see_committed_rows_only_while_the_run_writes(
    tmp_path: Path, prompt: list[SnapshotRecord], encoded: list[list[bytes]]
) -> None:
    path = tmp_path / "results.h5"
    create_results(path, SPEC)
    outlet, inlet = os.pipe()
    leave, stretch = os.pipe(), NUM_SNAPSHOTS // 8
    seen, num_stretches = [], 0

    def wait_to_be_seen(number: int) -> None:
        """Or a slow machine would look before and after the writing only."""
        if number % stretch == 0 and number < NUM_SNAPSHOTS:
            os.read(leave[0], 1)

    with forked(lambda: write_all(path, prompt, inlet, wait_to_be_seen)) as child:
        os.close(inlet)
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with h5py.File(path) as file:
                num = int(file["n_committed"][()])
                check_rows(file, num, encoded)
            seen.append(num)
            if num >= (num_stretches + 1) * stretch:  # the next is written while this one looks on
                num_stretches += 1
                os.write(leave[1], b"x")
            measures = open_run(path).measures()
            assert measures.sizes["step"] >= num
            assert (measures["weight_norm"] > 0).all()
            frame = open_run(path).metrics
            assert frame["lr"].notna().all()
            with xr.open_datatree(path, engine="h5netcdf") as tree:
                assert tree["n_committed"] >= num
            assert validate_results(path) == []
        assert exit_code(child) == 0
    assert last_acknowledged(outlet) == NUM_SNAPSHOTS
    for end in (outlet, *leave):
        os.close(end)
    # It really looked in between.
    assert len({num for num in seen if 0 < num < NUM_SNAPSHOTS}) >= 7


def test_a_kill_while_creating_leaves_nothing_or_a_complete_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = few_columns()
    names = ("posix_fallocate", "pwrite", "fsync")
    began, done = 0, False
    while not done:
        path = tmp_path / f"{began}.h5"

        def create(path: Path = path, last: int = began) -> None:
            _die_at_call(monkeypatch, names, last)
            create_results(path, spec)

        with forked(create) as child:
            done = exit_code(child) == 0
        _check_created(path, spec)
        # A third of the way on at a time, where the many writes are.
        began += 1 + began // 3
    assert began > 10
    assert path.exists()


def test_a_kill_at_any_time_while_creating_leaves_nothing_or_a_complete_file(
    tmp_path: Path,
) -> None:
    spec, moments = few_columns(num_snapshots=500), random.Random(1)
    for number in range(20):
        path = tmp_path / f"{number}.h5"
        with forked(partial(create_results, path, spec)) as child:
            until_a_random_moment(moments, 0.4)
            os.kill(child, signal.SIGKILL)
            exit_code(child)
        _check_created(path, spec)


def _die_at_call(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], last: int) -> None:
    """Kill this process at the call of that number among some calls of the system."""
    remaining = [last]
    for name in names:
        genuine = getattr(os, name)

        def call(*arguments: object, genuine: object = genuine) -> object:
            if not remaining[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            remaining[0] -= 1
            return genuine(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(os, name, call)


def _check_created(path: Path, spec: FileSpec) -> None:
    """Nothing or a valid empty file is there; whatever is left does not hinder the next attempt."""
    if path.exists():
        assert validate_results(path) == []
        with h5py.File(path) as file:
            assert int(file["n_committed"][()]) == 0
            assert np.isnan(file["layers/domination"][:]).all()
    create_results(path, spec)
    assert validate_results(path) == []
    assert not path.with_name(f"{path.name}.partial").exists()
