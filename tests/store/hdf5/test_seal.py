"""A sealed file says what the live one said, to every reader, or the live one is still there."""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from condexp.store.disk import ResultsError
from condexp.store.hdf5 import seal as seal_module
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.seal import MAX_CHUNK, MIN_CHUNK, chunk_shape, is_sealed, seal_results
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import open_run
from condexp.store.schema.layout import FileSpec
from tests.store.hdf5.processes import exit_code, forked
from tests.store.records import LAYERS, counters, few_columns, make_spec, write_run

Arrays = dict[str, Any]
WIDE = LayerInfo("wide", "Linear", d_in=900, d_out=4, groups=1, positions=1, uses=1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run with arrays worth a chunk, live and sealed."""
    spec = make_spec(60, 150, layers=(WIDE, *LAYERS[:2]), matrices=(Matrix.INPUT, Matrix.KFAC))
    folder = tmp_path_factory.mktemp("large")
    live = write_run(folder / "live.h5", spec)
    sealed = folder / "sealed.h5"
    sealed.write_bytes(live.read_bytes())
    seal_results(sealed)
    return live, sealed


def arrays(path: Path) -> Arrays:
    """Every dataset and attribute, by plain h5py."""
    found: Arrays = {}
    with h5py.File(path) as file:

        def take(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]
                found[f"{name} scales"] = [[s.name for s in axis.values()] for axis in item.dims]
                found[f"{name} words"] = item.attrs["units"], item.attrs["long_name"]

        file.visititems(take)
        found |= {f"attribute {name}": value for name, value in file.attrs.items()}
    return found


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.asarray(value).dtype == np.asarray(other[name]).dtype
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_everything_is_kept(large: tuple[Path, Path]) -> None:
    live, sealed = large
    kept = arrays(sealed)
    assert kept.pop("attribute condexp_sealed") == 1
    assert_same(kept, arrays(live))
    assert validate_results(sealed) == []
    assert (is_sealed(live), is_sealed(sealed)) == (False, True)


def test_large_arrays_are_compressed_in_chunks_and_small_ones_are_left(
    large: tuple[Path, Path],
) -> None:
    live, sealed = large
    chunked = 0
    with h5py.File(sealed) as file:

        def check(_: str, item: h5py.Group | h5py.Dataset) -> None:
            nonlocal chunked
            if not isinstance(item, h5py.Dataset):
                return
            if item.chunks is None:
                assert h5py.check_string_dtype(item.dtype) or item.nbytes < MIN_CHUNK
                return
            chunked += 1
            size = item.dtype.itemsize * int(np.prod(item.chunks))
            assert MIN_CHUNK <= size <= MAX_CHUNK
            assert (item.shuffle, item.fletcher32) == (True, True)
            assert (item.compression, item.compression_opts) == ("gzip", 4)

        file.visititems(check)
    assert chunked == 4  # train_step, loss, lr, and the wide layer's spectra
    assert sealed.stat().st_size < live.stat().st_size


@pytest.mark.parametrize(
    "shape", [(9000,), (200000,), (20, 100, 1000), (3, 7, 40000), (2, 3, 5, 50000), (1, 8192)]
)
def test_chunks_are_of_64_kb_to_1_mb_and_cover(shape: tuple[int, ...]) -> None:
    chunks = chunk_shape(shape, 8)
    assert len(chunks) == len(shape)
    assert all(1 <= part <= whole for part, whole in zip(chunks, shape, strict=True))
    assert MIN_CHUNK <= 8 * int(np.prod(chunks)) <= MAX_CHUNK


def test_every_reader_reads_both(large: tuple[Path, Path]) -> None:
    for engine in ("h5netcdf", "netcdf4"):
        with (
            xr.open_datatree(large[0], engine=engine) as live,
            xr.open_datatree(large[1], engine=engine) as sealed,
        ):
            assert live.equals(sealed)
            assert sealed.attrs.keys() - live.attrs.keys() == {"condexp_sealed"}
    with netCDF4.Dataset(large[0]) as live_file, netCDF4.Dataset(large[1]) as sealed_file:
        for name in ("layers/input_kappa", "layers/input_status", "layers/layer", "train/loss"):
            ours, theirs = sealed_file[name], live_file[name]
            assert ours.dimensions == theirs.dimensions
            np.testing.assert_array_equal(ours[...], theirs[...])
    one, other = (open_run(path) for path in large)
    assert one.measures().drop_attrs().identical(other.measures().drop_attrs())
    assert one.metrics.equals(other.metrics)
    assert one.spectrum("input", "conv").equals(other.spectrum("input", "conv"))


@pytest.mark.parametrize("num_steps", [0, 1, 7, 24])
def test_it_is_cut_to_what_was_committed(tmp_path: Path, num_steps: int) -> None:
    spec = few_columns()
    path = write_run(tmp_path / "results.h5", spec, num_steps)
    before = counters(path)
    seal_results(path)
    assert counters(path) == before
    with h5py.File(path) as file:
        lengths = [len(file[name]) for name in ("step", "train/train_step", "eval/eval_step")]
    assert tuple(lengths) == before
    assert validate_results(path) == []
    assert open_run(path).measures().sizes["step"] == before[0]
    for engine in ("h5netcdf", "netcdf4"):
        with xr.open_datatree(path, engine=engine) as tree:
            assert tree["train"].sizes["train_step"] == num_steps


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    spec, paths = make_spec(400, 1, matrices=(Matrix.WEIGHT,)), []
    for name in ("a", "b"):
        path = write_run(tmp_path / f"{name}.h5", spec)
        seal_results(path)
        paths.append(path)
    # And the same in a process that has done nothing else.
    third = write_run(tmp_path / "c.h5", spec)
    with forked(lambda: seal_results(third)) as child:
        assert exit_code(child) == 0
    assert len({path.read_bytes() for path in (*paths, third)}) == 1


def test_what_is_sealed_stays_so(large: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    path.write_bytes(large[1].read_bytes())
    with pytest.raises(InputError, match="is sealed already"):
        seal_results(path)
    with pytest.raises(InputError, match="is sealed: its run is complete"):
        ResultsWriter(path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        seal_results(path)


class Full:
    """Makes a call of the system fail, and all after it; half of a write may find its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.count, self.fails_at = 0, fails_at
        for name in ("pwrite", "ftruncate", "fsync"):
            monkeypatch.setattr(os, name, partial(self._call, getattr(os, name)))

    def _call(self, genuine: Callable[..., Any], *arguments: Any) -> Any:
        self.count += 1
        if self.count <= self.fails_at:
            return genuine(*arguments)
        if len(arguments) == 3 and self.count == self.fails_at + 1:
            handle, data, offset = arguments
            genuine(handle, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_without_room_the_live_file_stays_and_nothing_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path / "results.h5", few_columns())
    content = path.read_bytes()
    (tmp_path / "results.h5.lock").unlink()
    with monkeypatch.context() as patch:
        counting = Full(patch, fails_at=10**9)
        seal_results(path)
    num_calls = counting.count
    # Calls at the beginning and the end, and some in between; the last tells the disk the name.
    for fails_at in (*range(9), *range(9, num_calls - 9, 80), *range(num_calls - 9, num_calls - 1)):
        path.write_bytes(content)
        with monkeypatch.context() as patch:
            Full(patch, fails_at)
            with pytest.raises(ResultsError, match=r"ENOSPC; .*The results are complete") as caught:
                seal_results(path)
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == content
        assert sorted(each.name for each in tmp_path.iterdir()) == ["results.h5"]


def test_what_does_not_read_back_the_same_is_not_taken(
    tmp_path: Path, reference: tuple[FileSpec, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "results.h5", reference[1]
    path.write_bytes(content)
    genuine = seal_module._write

    def careless(live: h5py.File, described: Any, target: Any) -> None:
        genuine(live, described, target)
        # One bit of the losses, which have no checksum.
        loss = live["train/loss"][:1].tobytes()
        place = target._handle
        where = os.pread(place, target.size, 0).index(live["train/loss"][:].tobytes())
        os.pwrite(place, bytes([loss[0] ^ 1]), where)

    monkeypatch.setattr(seal_module, "_write", careless)
    with pytest.raises(ResultsError, match="not sealed as it was to be: /train/loss differs"):
        seal_results(path)
    assert path.read_bytes() == content


def test_an_empty_schedule_can_be_sealed(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    create_results(path, make_spec(snapshot_steps=(), layers=(), matrices=()))
    seal_results(path)
    assert validate_results(path) == []
