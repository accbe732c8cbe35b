"""One writer, and one clear error, whatever folder and file system a run is given."""

import errno
import fcntl
import json
import math
import os
import tempfile
from pathlib import Path

import h5py
import pytest

from condexp.errors import InputError
from condexp.store.disk import ResultsError, write_json
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from tests.store.hdf5.processes import exit_code, forked, without_privileges
from tests.store.records import (
    make_spec,
    restore_checksums,
    snapshot_record,
    write_run,
)


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
        refused = pytest.raises(ResultsError, match=r"Permission denied \(EACCES.*Nothing was")
        with without_privileges(), refused:
            create_results(path, make_spec())
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
        file.attrs["condexp_format_version"] = 5
    with pytest.raises(InputError, match="version 1 or 2 or 3 or 4: it says 'condexp', version 5"):
        ResultsWriter(path)
    create_results(path, make_spec())
    with pytest.raises(InputError, match="unknown durability 'disk': allowed are kill, power"):
        ResultsWriter(path, "disk")
    with h5py.File(path, "r+") as file:
        file.attrs["condexp_sealed"] = 1
    with pytest.raises(InputError, match="its end, with the checksums, is missing"):
        ResultsWriter(path)
    restore_checksums(path)
    with pytest.raises(InputError, match="is sealed"):
        ResultsWriter(path)


def test_a_file_that_hdf5_has_rewritten_has_no_fixed_places(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    create_results(path, make_spec())
    with h5py.File(path, "r+") as file:
        del file["epoch"]
        file.create_dataset("epoch", (8,), "<f8", chunks=(4,)).dims[0].attach_scale(file["step"])
    restore_checksums(path)
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

    def failing(number: int) -> None:
        failures, real = [number], os.fsync

        def fsync(handle: int) -> None:
            if failures:
                raise OSError(failures.pop(), os.strerror(number))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    failing(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        write_json(path, {})
    assert path.read_text(encoding="utf-8") == text
    # No room for a second file: the state of a run goes where the older one is.
    failing(errno.ENOSPC)
    write_json(path, {"state": "failed"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"state": "failed"}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
