"""Every number arrives in its place, is committed in the right order, or is one clear error."""

import errno
import fcntl
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from condexp.analysis.options import Matrix
from condexp.analysis.snapshot import LAYER_MEASURES
from condexp.errors import InputError
from condexp.linalg.spectrum import SPECTRUM_MEASURES
from condexp.store.create import create_results
from condexp.store.disk import ResultsError, write_json
from condexp.store.fields import DTYPE_CODES, STATUS_CODES
from condexp.store.layout import FileSpec
from condexp.store.validate import validate_results
from condexp.store.writer import ResultsWriter, checksum
from condexp.training.events import SnapshotRecord
from tests.store.processes import exit_code, forked
from tests.store.records import (
    KAPPA_P,
    eval_record,
    feed,
    make_spec,
    snapshot_record,
    step_record,
    write_run,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileSpec, bytes]:
    spec = make_spec()
    path = write_run(tmp_path_factory.mktemp("writer") / "results.h5", spec)
    return spec, path.read_bytes()


def counters(path: Path) -> tuple[int, int, int]:
    with h5py.File(path) as file:
        names = ("n_committed", "n_train_committed", "n_eval_committed")
        first, second, third = (int(file[name][()]) for name in names)
    return first, second, third


def test_every_number_of_every_record_is_in_its_place(tmp_path: Path) -> None:
    spec = make_spec()
    path = write_run(tmp_path / "results.h5", spec)
    equal = np.testing.assert_array_equal  # NaN equals NaN, bits and all
    with h5py.File(path) as file:
        layers = file["layers"]
        for row, step in enumerate(spec.snapshot_steps):
            record = snapshot_record(spec, step)
            assert file["epoch"][row] == record.epoch
            for column, layer in enumerate(record.snapshot.records):
                for name in LAYER_MEASURES:
                    equal(layers[name][row, column], getattr(layer, name))
                for matrix in Matrix:
                    spectrum = getattr(layer, matrix)
                    for name in (*SPECTRUM_MEASURES, "noise_floor"):
                        equal(layers[f"{matrix}_{name}"][row, column], getattr(spectrum, name))
                    kappa = [spectrum.kappa(p) for p in KAPPA_P]
                    equal(layers[f"{matrix}_kappa"][row, column], kappa)
                    status = STATUS_CODES[spectrum.status]
                    assert layers[f"{matrix}_status"][row, column] == status
                    dtype = DTYPE_CODES[str(spectrum.dtype).partition(".")[2]]
                    assert layers[f"{matrix}_dtype"][row, column] == dtype
                    if matrix is not Matrix.KFAC:
                        group = file[f"spectra/{matrix}/n{len(spectrum):05d}"]
                        member = group["layer_index"][:].tolist().index(column)
                        equal(group["eigenvalue"][row, member], spectrum.eigenvalues.numpy())
        for step in range(spec.num_train_steps):
            equal(file["train/loss"][step], step_record(step).loss)
            assert file["train/lr"][step] == step_record(step).lr
        for row, step in enumerate(spec.eval_steps):
            evaluation = eval_record(spec, step)
            for name in ("epoch", "train_loss", "train_error", "test_loss", "test_error"):
                assert file[f"eval/{name}"][row] == getattr(evaluation, name)
    # Degenerate spectra, infinite condition numbers and NaN were really among them.
    with h5py.File(path) as file:
        assert {1, 2, 3, 4} == set(file["layers/input_status"][:].ravel())
        assert np.isinf(file["layers/kfac_kappa"][:]).any()
    assert counters(path) == (8, 24, 4)


def test_a_layer_that_is_not_measured_this_time_is_absent(tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    whole = snapshot_record(spec, 0)
    part = type(whole.snapshot)(whole.snapshot.records[1:], 32, whole.snapshot.bn_mode)
    with ResultsWriter(path) as writer:
        writer.on_snapshot(SnapshotRecord(0, 0.0, part))
    with h5py.File(path) as file:
        assert file["layers/input_status"][0].tolist()[0] == STATUS_CODES["absent"]
        assert np.isnan(file["layers/kfac_kappa"][0, 0]).all()
        assert np.isnan(file["spectra/input/n00009/eigenvalue"][0]).all()
        assert file["layers/weight_norm"][0, 1] == part.records[0].weight_norm
    assert validate_results(path) == []


def test_a_checksum_of_zero_is_kept_for_rows_not_written() -> None:
    # The CRC-32 of these four bytes is 0, as a table of CRC inverses gives them.
    zero = bytes.fromhex("9d0ad96d")
    assert checksum([zero]) == b"\x01\0\0\0"
    # The check value that every CRC-32 is published with.
    assert checksum([b"1234", b"56789"]) == 0xCBF43926.to_bytes(4, "little")


def test_the_schedule_is_kept(tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    with ResultsWriter(path) as writer:
        with pytest.raises(ValueError, match="next snapshot record is of step 0, not 3"):
            writer.on_snapshot(snapshot_record(spec, 3))
        with pytest.raises(ValueError, match="next train record is of step 0, not 1"):
            writer.on_step(step_record(1))
        with pytest.raises(ValueError, match="next eval record is of step 6, not 1"):
            writer.on_eval(eval_record(spec, 1))
        feed(writer, spec)
        with pytest.raises(ValueError, match="no snapshot row is left for step 24"):
            writer.on_snapshot(snapshot_record(spec, 24))
        with pytest.raises(ValueError, match="no train row is left"):
            writer.on_step(step_record(24))
    assert counters(path) == (8, 24, 4)


def test_a_snapshot_of_another_model_is_refused(tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    first = make_spec(layers=spec.layers[:1])
    create_results(path, first)
    with ResultsWriter(path) as writer, pytest.raises(ValueError, match=r"no layers \['fc', "):
        writer.on_snapshot(snapshot_record(spec, 0))
    wider = make_spec(layers=(type(spec.layers[3])("fc", "Linear", 7, 4, 1, 1, 1),))
    create_results(path, wider)
    narrow = snapshot_record(make_spec(layers=spec.layers[3:]), 0)
    with ResultsWriter(path) as writer, pytest.raises(ValueError, match=r"6 eigenvalues.* for 7"):
        writer.on_snapshot(narrow)
    assert counters(path) == (0, 0, 0)


def test_training_steps_are_committed_within_a_second_and_with_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    create_results(path, spec)
    with ResultsWriter(path) as writer:
        writer.on_snapshot(snapshot_record(spec, 0))
        for step in range(3):
            writer.on_step(step_record(step))
        assert counters(path) == (1, 0, 0)
        now += 1.1
        writer.on_step(step_record(3))
        assert counters(path) == (1, 4, 0)
        writer.on_step(step_record(4))
        writer.on_snapshot(snapshot_record(spec, 3))
        assert counters(path) == (2, 5, 0)
        writer.on_step(step_record(5))
        writer.on_eval(eval_record(spec, 6))
        assert counters(path) == (2, 6, 1)
        writer.on_step(step_record(6))
    assert counters(path) == (2, 7, 1)


def test_a_second_writer_goes_on_where_the_first_stopped(
    tmp_path: Path, reference: tuple[FileSpec, bytes]
) -> None:
    spec, expected = reference
    path = write_run(tmp_path / "results.h5", spec, num_steps=7)
    with ResultsWriter(path) as writer:
        assert writer.num_committed == 3
        for step in range(7, spec.num_train_steps):
            if step in spec.snapshot_steps:
                writer.on_snapshot(snapshot_record(spec, step))
            writer.on_step(step_record(step))
            if step + 1 in spec.eval_steps:
                writer.on_eval(eval_record(spec, step + 1))
    assert path.read_bytes() == expected


PWRITE, FDATASYNC = os.pwrite, os.fdatasync


class Calls:
    """Counts the writes, and makes one of them fail; the others take a few bytes at a time."""

    def __init__(self, fails_at: int | None = None, error: int = errno.ENOSPC) -> None:
        self.fails_at, self.error = fails_at, error
        self.seen: list[tuple[str, int]] = []

    def _count(self, name: str, offset: int) -> None:
        self.seen.append((name, offset))
        if len(self.seen) - 1 == self.fails_at:
            raise OSError(self.error, os.strerror(self.error))

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        self._count("pwrite", offset)
        return PWRITE(handle, data[: max(1, len(data) // 2)], offset)

    def fdatasync(self, handle: int) -> None:
        self._count("fdatasync", -1)
        FDATASYNC(handle)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Calls]]:
    def patch(*arguments: int) -> Calls:
        calls = Calls(*arguments)
        monkeypatch.setattr(os, "pwrite", calls.pwrite)
        monkeypatch.setattr(os, "fdatasync", calls.fdatasync)
        return calls

    yield patch
    monkeypatch.undo()


def test_the_counter_is_written_last_between_two_waits_for_the_disk(
    tmp_path: Path, fail: Callable[..., Calls]
) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    with h5py.File(path) as file:
        counter = file["n_committed"].id.get_offset()
    with ResultsWriter(path, durability="power") as writer:
        calls = fail()
        writer.on_snapshot(snapshot_record(spec, 0))
    names = [name for name, _ in calls.seen]
    first = names.index("fdatasync")
    rest = calls.seen[first:]
    assert set(names[:first]) == {"pwrite"}
    # Eight bytes in halves: 4, 2, 1, 1.
    places = [("pwrite", counter + done) for done in (0, 4, 6, 7)]
    assert rest == [("fdatasync", -1), *places, ("fdatasync", -1)]
    with ResultsWriter(path, durability="kill") as writer:
        calls = fail()
        writer.on_snapshot(snapshot_record(spec, 3))
    assert "fdatasync" not in [name for name, _ in calls.seen]


def test_a_full_disk_at_any_write_loses_nothing_and_the_call_can_be_repeated(
    tmp_path: Path, fail: Callable[..., Calls], reference: tuple[FileSpec, bytes]
) -> None:
    spec, expected = reference
    path = tmp_path / "results.h5"
    create_results(path, spec)
    path_of_step: list[int] = []
    with ResultsWriter(path, durability="power") as writer:
        for step in range(spec.num_train_steps):
            if step in spec.snapshot_steps:
                before = counters(path)[0]
                failures = _until_it_works(
                    partial(writer.on_snapshot, snapshot_record(spec, step)),
                    fail,
                    # Most columns of the first snapshot, and a few of each other.
                    stride=5 if step == 0 else 101,
                    message=f"{before} committed snapshots are intact",
                    path=path,
                )
                path_of_step.append(failures)
                assert counters(path)[0] == before + 1
                assert validate_results(path) == []
            writer.on_step(step_record(step))
            if step + 1 in spec.eval_steps:
                _until_it_works(
                    partial(writer.on_eval, eval_record(spec, step + 1)),
                    fail,
                    stride=7,
                    message="committed snapshots are intact",
                    path=path,
                )
    assert path_of_step[0] > 70  # more than one failure a column
    assert path.read_bytes() == expected


def _until_it_works(
    call: Callable[[], None], fail: Callable[..., Calls], stride: int, message: str, path: Path
) -> int:
    """Repeat a call that fails at a later and later write; the number of failures."""
    for failures, at in enumerate(range(0, 100_000, stride)):
        calls, caught = fail(at), None
        try:
            call()
        except ResultsError as error:
            caught = error
        if caught is None:
            assert len(calls.seen) <= at
            return failures
        assert caught.errno == errno.ENOSPC
        for part in (message, str(path), "No space left on device (ENOSPC; ", "MiB free"):
            assert part in str(caught)
    raise AssertionError("it never worked")


def test_steps_are_kept_while_the_disk_is_full(tmp_path: Path, fail: Callable[..., Calls]) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    writer = ResultsWriter(path)
    for step in range(4):
        writer.on_step(step_record(step))
    fail(0)
    with pytest.raises(ResultsError, match="0 committed snapshots are intact"):
        writer.close()
    writer.on_step(step_record(3))  # the same call again
    fail()
    writer.close()
    assert counters(path) == (0, 4, 0)
    assert validate_results(path) == []


def test_a_broken_file_handle_is_let_go_when_a_run_fails(
    tmp_path: Path, fail: Callable[..., Calls]
) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    writer = ResultsWriter(path)
    writer.on_step(step_record(0))
    fail(0, errno.EIO)
    with pytest.raises(ResultsError, match="EIO"):
        writer.__exit__(None, None, None)
    fail()
    with ResultsWriter(path) as writer:
        assert writer.num_committed == 0


def test_creation_without_room_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spec = tmp_path / "results.h5", make_spec()
    path.write_bytes(b"older")

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("posix_fallocate", "pwrite", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(ResultsError, match=r"ENOSPC; .* free\). Nothing was created"):
                create_results(path, spec)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["results.h5", "results.h5.lock"]
        assert path.read_bytes() == b"older"


def test_a_file_system_that_reserves_no_space_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    spec = make_spec()
    assert validate_results(write_run(tmp_path / "results.h5", spec)) == []


def test_a_folder_without_permission_is_one_clear_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "results.h5"
        folder.chmod(0o555)
        root = os.geteuid() == 0
        # The superuser may write everywhere, so the test gives that up for a moment.
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(ResultsError, match=r"Permission denied \(EACCES.*Nothing was"):
                create_results(path, make_spec())
        finally:
            if root:
                os.seteuid(0)
        folder.chmod(0o755)
        assert list(folder.iterdir()) == []


def test_there_is_one_writer(tmp_path: Path) -> None:
    path, spec = tmp_path / "results.h5", make_spec()
    create_results(path, spec)

    def refused() -> None:
        for attempt in (lambda: ResultsWriter(path), lambda: create_results(path, spec)):
            with pytest.raises(ResultsError, match="is being written by another process"):
                attempt()

    before = path.read_bytes()
    with ResultsWriter(path):
        refused()
        with forked(refused) as child:
            assert exit_code(child) == 0
        assert path.read_bytes() == before
    with ResultsWriter(path) as writer:
        writer.on_snapshot(snapshot_record(spec, 0))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert validate_results(write_run(tmp_path / "results.h5", make_spec())) == []


def test_a_lock_that_fails_otherwise_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ResultsError, match="EIO"):
        create_results(tmp_path / "results.h5", make_spec())


def test_what_is_no_results_file_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    with pytest.raises(InputError, match="no results file at"):
        ResultsWriter(path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        ResultsWriter(path)
    with h5py.File(path, "w") as file:
        file.attrs["condexp_format"] = "condexp"
        file.attrs["condexp_format_version"] = 2
    with pytest.raises(InputError, match="version 1: it says 'condexp', version 2"):
        ResultsWriter(path)
    create_results(path, make_spec())
    with pytest.raises(InputError, match="unknown durability 'disk': allowed are kill, power"):
        ResultsWriter(path, "disk")
    with h5py.File(path, "r+") as file:
        file.attrs["condexp_sealed"] = 1
    with pytest.raises(InputError, match="is sealed"):
        ResultsWriter(path)


def test_a_file_that_hdf5_has_rewritten_has_no_fixed_places(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    create_results(path, make_spec())
    with h5py.File(path, "r+") as file:
        del file["epoch"]
        file.create_dataset("epoch", (8,), "<f8", chunks=(4,)).dims[0].attach_scale(file["step"])
    with pytest.raises(InputError, match="/epoch has no fixed place"):
        ResultsWriter(path)


def test_json_is_whole_finite_and_replaces_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"a": [1.5, math.nan, (math.inf, "λ")], "b": {"c": -math.inf, "d": True}})
    text = path.read_text(encoding="utf-8")
    assert "λ" in text
    assert "".join(text.split()) == '{"a":[1.5,null,[null,"λ"]],"b":{"c":null,"d":true}}'

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {})
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
