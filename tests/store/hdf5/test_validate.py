"""Every way a results file can be wrong is told in a sentence; no file is too broken for it."""

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from condexp.analysis.vocabulary import Matrix
from condexp.store.hdf5.validate import validate_results
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import columns
from tests.store.hdf5.processes import exit_code, forked
from tests.store.records import make_spec, restore_checksums, write_run

COMMITTED = 4
SPEC = make_spec()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("validate") / "results.h5"
    write_run(path, SPEC, num_steps=10)
    assert validate_results(path) == []
    return path.read_bytes()


@pytest.fixture
def path(valid: bytes, tmp_path: Path) -> Path:
    copy = tmp_path / "results.h5"
    copy.write_bytes(valid)
    return copy


def test_a_changed_bit_of_any_committed_column_is_found(tmp_path: Path) -> None:
    spec = make_spec(layers=SPEC.layers[2:], matrices=(Matrix.INPUT, Matrix.KFAC))
    path = write_run(tmp_path / "results.h5", spec, num_steps=10)
    valid = path.read_bytes()
    with h5py.File(path) as file:
        own = {c: file[c.path].id.get_offset() for c in columns(spec.extent, Axis.SNAPSHOT)}
    assert len(own) == 39
    for number, (column, offset) in enumerate(own.items()):
        row = number % COMMITTED
        content = bytearray(valid)
        content[offset + (row + 1) * column.row_bytes - 1] ^= 1
        path.write_bytes(content)
        told = f"/{column.path}, snapshot {row} (step {3 * row}): its bytes do not match"
        if column.path == "step":  # which is never written again
            told = "do not match their checksum"
        assert told in validate_results(path)[0], column.path


def test_rows_that_are_not_committed_may_hold_anything(path: Path, valid: bytes) -> None:
    content = bytearray(valid)
    with h5py.File(path) as file:
        for column in columns(SPEC.extent, Axis.SNAPSHOT):
            if column.path != "step":
                start = file[column.path].id.get_offset() + COMMITTED * column.row_bytes
                content[start : start + column.row_bytes] = b"?" * column.row_bytes
    path.write_bytes(content)
    assert validate_results(path) == []


def _other_shape(file: h5py.File) -> None:
    del file["layers/domination"]
    file["layers/domination"] = np.zeros((8, 3))


def _other_type(file: h5py.File) -> None:
    del file["layers/kfac_status"]
    file["layers/kfac_status"] = np.zeros((8, 4), "i1")


def _set(path: str, index: object, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[path][index] = value

    return change


def _delete(path: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[path]

    return change


def _detach(file: h5py.File) -> None:
    file["layers/input_kappa"].dims[2].detach_scale(file["layers/p"])


def _unit(file: h5py.File) -> None:
    del file["eval/test_error"].attrs["units"]


def _extra(file: h5py.File) -> None:
    file["layers/spam"] = 1.0


def _no_scale(file: h5py.File) -> None:
    del file["layers/p"].attrs["CLASS"]


def _version(file: h5py.File) -> None:
    file.attrs["condexp_format_version"] = 7


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_delete("layers/domination"), "/layers/domination is missing"),
        (_delete("layers"), "object 'layers' doesn't exist"),
        (_extra, "/layers/spam does not belong to the format"),
        (_other_shape, "/layers/domination has shape (8, 3), not (8, 4)"),
        (_other_type, "/layers/kfac_status has elements int8, not int8"),
        (_detach, "/layers/input_kappa, dimension 2: its scale is none, not /layers/p"),
        (_unit, "/eval/test_error has no units"),
        (_no_scale, "/layers/p is not a dimension scale"),
        (_version, "version 1 or 2 or 3 or 4: it says 'condexp', version 7"),
        (_set("n_committed", (), 9), "/n_committed is 9, the file has 8 rows"),
        (_set("n_committed", (), -1), "/n_committed is -1, the file has 8 rows"),
        (_set("n_committed", (), 5), "snapshot 4 (step 12): its bytes do not match"),
        (_set("crc32", 1, 0), "snapshot 1 (step 3): its bytes do not match"),
        (_set("n_train_committed", (), 11), "row 10 of /train does not match its checksum"),
        (_set("train/lr", 3, np.inf), "/train/lr, committed row 3: inf is no learning rate"),
        (_set("train/train_step", 3, 3000), "/train/train_step does not increase"),
        (_set("eval/eval_step", 1, 6), "/eval/eval_step does not increase"),
        (_set("eval/epoch", 0, np.nan), "/eval/epoch does not increase over the committed rows"),
        (_set("epoch", 1, -2.0), "/epoch does not increase over the committed rows"),
        (_set("layers/step", 7, 22), "/layers/step differs from /step"),
        (_set("config", (), "seed: 2"), "/config is not the configuration"),
    ],
)
def test_what_is_wrong_is_named(
    path: Path, change: Callable[[h5py.File], None], problem: str
) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    restore_checksums(path)
    problems = validate_results(path)
    assert any(problem in told for told in problems), problems


def test_no_file_is_too_broken(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "broken.h5"
    assert validate_results(path) == [f"no results file at {path}: No such file or directory"]
    assert "no results file" in validate_results(tmp_path)[0]
    noise = random.Random(0)
    broken = [b"", b"text\n" * 100, valid[:8] + noise.randbytes(5000), noise.randbytes(5000)]
    broken += [valid[: noise.randrange(len(valid))] for _ in range(20)]
    for content in broken:
        path.write_bytes(content)
        assert len(validate_results(path)) == 1

    def flip_bytes() -> None:
        for _ in range(60):
            content = bytearray(valid)
            for _ in range(noise.choice((1, 10, 100))):
                content[noise.randrange(noise.choice((2000, len(content))))] = noise.randrange(256)
            path.write_bytes(content)
            assert isinstance(validate_results(path), list)

    # In a child: should the library crash over a damaged file, this test fails and no other.
    with forked(flip_bytes) as child:
        assert exit_code(child) == 0
