"""The layout is a contract with every reader: names, shapes, offsets, and words on each array."""

import hashlib
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.vocabulary import (
    LAYER_MEASURES,
    SPECTRUM_MEASURES,
    Matrix,
    SpectrumStatus,
)
from condexp.errors import InputError
from condexp.store.hdf5.checked_file import Trailer
from condexp.store.hdf5.create import create_results, skeleton
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.schema.fields import MATRIX_NAMES, MEASURE_NAMES, STATUS_CODES, Axis
from condexp.store.schema.layout import COUNTERS, FileSpec, datasets, file_size
from tests.store.records import KAPPA_P, LAYERS, MATRICES, feed, make_spec, write_run
from tests.waiting import wait_for_another_second


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FileSpec]:
    spec = make_spec()
    return write_run(tmp_path_factory.mktemp("layout") / "results.h5", spec), spec


def test_every_array_of_the_format_is_there_in_its_shape(written: tuple[Path, FileSpec]) -> None:
    path, _ = written
    num_layers, num_snapshots, num_steps, num_evals = 4, 8, 24, 4
    expected = {
        "config": (),
        "not_analysed": (1,),
        "step": (num_snapshots,),
        "epoch": (num_snapshots,),
        "coverage_parameters": (num_snapshots,),
        "coverage_gradient": (num_snapshots,),
        "n_committed": (),
        "n_train_committed": (),
        "n_eval_committed": (),
        "column": (113,),
        "crc32": (num_snapshots, 113),
        "train/crc32": (num_steps,),
        "eval/crc32": (num_evals,),
        "train/train_step": (num_steps,),
        "train/loss": (num_steps,),
        "train/lr": (num_steps,),
        "layers/step": (num_snapshots,),
        "layers/layer": (num_layers,),
        "layers/p": (3,),
    }
    for name in ("eval_step", "epoch", "train_loss", "train_error", "test_loss", "test_error"):
        expected[f"eval/{name}"] = (num_evals,)
    for name in ("type", "d_in", "d_out", "groups", "num_rows", "positions", "reused"):
        expected[f"layers/{name}"] = (num_layers,)
    by_layer = (num_snapshots, num_layers)
    names = (*LAYER_MEASURES, "gradient_residual")
    expected |= dict.fromkeys((f"layers/{name}" for name in names), by_layer)
    for matrix in ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad"):
        for name in (*SPECTRUM_MEASURES, "noise_floor", "status", "dtype"):
            expected[f"layers/{matrix}_{name}"] = by_layer
        for end in ("", "_low", "_high"):
            expected[f"layers/{matrix}_kappa{end}"] = (*by_layer, 3)
        expected[f"layers/n_{matrix}"] = (num_layers,)
    # The layers whose spectra have one length share a group.
    groups = {
        "input/n00006": (3, 6),
        "input/n00009": (1, 9),
        "grad_output/n00004": (1, 4),
        "grad_output/n00006": (3, 6),
    }
    groups["fisher/n00008"] = (4, 8)  # eight samples, and more weights in each layer
    for matrix in ("weight", "weight_grad"):
        groups |= {f"{matrix}/n00004": (1, 4), f"{matrix}/n00006": (3, 6)}
    for group, (members, length) in groups.items():
        expected[f"spectra/{group}/step"] = (num_snapshots,)
        expected[f"spectra/{group}/layer"] = (members,)
        expected[f"spectra/{group}/layer_index"] = (members,)
        expected[f"spectra/{group}/eig"] = (length,)
        expected[f"spectra/{group}/eigenvalue"] = (num_snapshots, members, length)
    for name in (*SPECTRUM_MEASURES, "noise_floor", "status", "dtype"):
        expected[f"network/fisher_{name}"] = (num_snapshots,)
    for end in ("", "_low", "_high"):
        expected[f"network/fisher_kappa{end}"] = (num_snapshots, 3)
    expected["network/fisher_eigenvalue"] = (num_snapshots, 8)
    expected |= {"network/step": (num_snapshots,), "network/eig": (8,), "network/p": (3,)}
    found: dict[str, tuple[int, ...]] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item.shape}) if hasattr(item, "shape") else None
        )
    assert found == expected


def test_the_arrays_describe_themselves(written: tuple[Path, FileSpec]) -> None:
    path, spec = written
    with h5py.File(path) as file:
        for dataset in datasets(spec):
            stored = file[dataset.path]
            assert stored.attrs["long_name"], dataset.path
            assert stored.attrs["units"], dataset.path
            labels = [dim.keys() for dim in stored.dims]
            named = [[]] if stored.is_scale else [[name] for name in dataset.dims]
            assert labels == named, dataset.path
        assert file["eval/test_error"].attrs["units"] == "percent"
        assert h5py.check_enum_dtype(file["layers/kfac_status"].dtype) == STATUS_CODES
        assert file["layers/reused"][:].tolist() == [0, 0, 1, 0]
        assert file["layers/groups"][:].tolist() == [1, 2, 1, 1]
        # 8 samples: times 16 and 4 positions, then two uses of one module.
        assert file["layers/num_rows"][:].tolist() == [128, 32, 16, 8]
        assert file["layers/n_kfac"][:].tolist() == [54, 18, 36, 24]
        assert file["spectra/input/n00006/layer_index"][:].tolist() == [1, 2, 3]
        assert file["spectra/input/n00006/layer"].asstr()[1] == "shared.ünit"
        assert file["not_analysed"].asstr()[0] == "bn: BatchNorm2d: no matrix weight"
        assert file.attrs["condexp_format_version"] == 3
        assert file.attrs["title"] == "a test λ"
        assert file.attrs["center"] == 0
        assert "1/N sum of g g^T" in file.attrs["scale_convention"]


@pytest.mark.parametrize(
    ("num_samples", "num_signals", "lengths", "network"),
    [
        (20, 1, [20, 18, 20, 20], 20),  # the second layer has 18 weights
        (5, 4, [20, 18, 20, 20], 20),
        (30, 1, [30, 18, 30, 24], 30),
        (131, 1, [54, 18, 36, 24], 131),
        (200, 1, [54, 18, 36, 24], 132),
    ],
)
def test_a_fisher_spectrum_has_as_many_eigenvalues_as_rows_or_weights(
    num_samples: int, num_signals: int, lengths: list[int], network: int, tmp_path: Path
) -> None:
    spec = make_spec(num_samples=num_samples, num_signals=num_signals, matrices=(Matrix.FISHER,))
    path = write_run(tmp_path / "results.h5", spec)
    assert validate_results(path) == []
    with h5py.File(path) as file:
        assert file["layers/n_fisher"][:].tolist() == lengths
        assert len(file["network/eig"]) == file["network/fisher_eigenvalue"].shape[1] == network
        # The rows of the inputs; those of the gradients are as many times more.
        assert file["layers/num_rows"][3] == num_samples
        assert file.attrs.get("num_signals", 1) == num_signals


def test_version_1_is_laid_out_as_ever() -> None:
    """Places and words of format 1 as they were before it held Fisher matrices."""
    without = tuple(matrix for matrix in MATRICES if matrix is not Matrix.FISHER)
    words = "\n".join(
        f"{d.path} {d.shape} {d.kind.partition(' ')[0]} {d.dims} {d.long_name} {d.units} {d.axis}"
        for d in datasets(replace(make_spec(matrices=without).extent, version=1))
    )
    digest = hashlib.sha256(words.encode()).hexdigest()
    assert digest == "04b393b411f89a3a0d8bb00644231bf0918e194e5cb40f5589921c343f8cb17f"
    file, _, _ = skeleton(make_spec(matrices=without))
    with h5py.File(file, "r") as opened:
        assert set(opened.attrs) == {
            "Conventions", "condexp_format", "condexp_format_version", "config_sha256",
            "scale_convention", "steps_per_epoch", "title", "source", "center", "bias",
        }  # fmt: skip


def test_reduced_factors_are_said_to_be_that() -> None:
    layers = (replace(LAYERS[0], is_reduced=True), replace(LAYERS[3], has_factors=False))
    attributes = {"weight_sharing": "reduce", "title": "a test"}
    file, _, _ = skeleton(make_spec(layers=layers, attributes=attributes))
    with h5py.File(file, "r") as opened:
        assert "a the mean over positions" in opened.attrs["scale_convention"]
        assert "g summed over positions before" in opened.attrs["scale_convention"]
        assert opened["layers/num_rows"][0] == 8  # of 8 samples
        assert opened["layers/n_kfac"][:].tolist() == [54, 0]  # 0 is absent


def test_a_layer_may_not_be_called_as_the_network(tmp_path: Path) -> None:
    layers = (LayerInfo("network", "Linear", 3, 2, 1, 1, 1),)
    with pytest.raises(
        InputError, match=r"a layer is called 'network'.*leave fisher, hessian and ggn out"
    ):
        make_spec(layers=layers)
    write_run(tmp_path / "results.h5", make_spec(layers=layers, matrices=(Matrix.INPUT,)))


def test_every_status_measure_and_matrix_has_its_word() -> None:
    stored = set(SpectrumStatus) - {SpectrumStatus.ESTIMATED}  # as ok, without a rank
    assert stored | {"absent"} == set(STATUS_CODES)
    assert set(Matrix) == set(MATRIX_NAMES)
    assert {*LAYER_MEASURES, *SPECTRUM_MEASURES} <= set(MEASURE_NAMES)


def test_every_row_has_a_fixed_aligned_place_and_waits_as_nan(tmp_path: Path) -> None:
    path, spec = tmp_path / "results.h5", make_spec()
    create_results(path, spec)
    with h5py.File(path) as file:
        assert file.userblock_size == 0
        for dataset in datasets(spec):
            offset = file[dataset.path].id.get_offset()
            assert offset is not None, dataset.path
            assert offset % min(8, dataset.kind.num_bytes) == 0, dataset.path
            if dataset.axis is not None and dataset.path != "step":
                values = file[dataset.path][...]
                waiting = np.isnan(values) if values.dtype.kind == "f" else values == 0
                assert waiting.all(), dataset.path
        assert [int(file[name][()]) for name in COUNTERS.values()] == [0, 0, 0]
        assert file["step"][:].tolist() == list(spec.snapshot_steps)


def test_the_bytes_are_those_of_the_old_plain_format(written: tuple[Path, FileSpec]) -> None:
    # By the HDF5 specification, level 0A: signature, superblock version 2, 8-byte sizes, not open
    # for writing, base address 0, and an end of file that is where the checksums begin.
    content = written[0].read_bytes()
    signature, version, offsets, lengths, flags = struct.unpack_from("<8sBBBB", content)
    base, _, end = struct.unpack_from("<QQQ", content, 12)
    assert signature == b"\x89HDF\r\n\x1a\n"
    assert (version, offsets, lengths, flags) == (2, 8, 8, 0)
    trailer = Trailer.read(written[0])
    assert trailer is not None
    assert (base, end) == (0, trailer.size)
    assert content.endswith(trailer.to_bytes())


def test_another_library_reads_it_while_it_is_written(tmp_path: Path) -> None:
    path, spec = tmp_path / "results.h5", make_spec()
    create_results(path, spec)
    with ResultsWriter(path) as writer:
        feed(writer, spec, num_steps=10)
        with h5py.File(path) as file:
            assert int(file["n_committed"][()]) == 4
        tree = xr.open_datatree(path, engine="h5netcdf")
        with tree:
            layers = tree["layers"].to_dataset()
            assert dict(layers.sizes) == {
                "step": 8,
                "layer": 4,
                "p": 3,
                "not_analysed": 1,
                "column": 113,
            }
            assert layers["kfac_kappa"].dims == ("step", "layer", "p")
            assert layers["layer"].values.tolist() == [info.name for info in LAYERS]
            assert layers["p"].values.tolist() == list(KAPPA_P)
            value = layers["input_lambda_max"].sel(layer="fc", step=6)
            assert np.isfinite(value)
            eigenvalues = tree["spectra/input/n00006/eigenvalue"]
            assert eigenvalues.dims == ("step", "layer", "eig")
            assert eigenvalues.sel(layer="fc", step=6, eig=0) == value
            network = tree["network"].to_dataset()
            assert network["fisher_eigenvalue"].dims == ("step", "eig")
            assert network["fisher_kappa"].dims == ("step", "p")
            value = network["fisher_eigenvalue"].sel(step=6, eig=0)
            assert value == network["fisher_lambda_max"].sel(step=6)
            assert tree["train/loss"].dims == ("train_step",)
            assert tree["eval/test_error"].dims == ("eval_step",)
        # The command-line tools of HDF5 are not everywhere; where they are, they must agree.
        if h5dump := shutil.which("h5dump"):
            told = subprocess.run(
                (h5dump, "-d", "/n_committed", str(path)),
                capture_output=True,
                check=True,
                text=True,
            )
            assert "(0): 4" in told.stdout
            subprocess.run((h5dump, str(path)), capture_output=True, check=True)


def test_the_same_run_makes_the_same_bytes(tmp_path: Path) -> None:
    spec = make_spec()
    first = write_run(tmp_path / "a.h5", spec).read_bytes()
    wait_for_another_second()  # which is the resolution of HDF5's times
    assert write_run(tmp_path / "b.h5", spec).read_bytes() == first


@pytest.mark.parametrize(
    "changes",
    [
        {"matrices": (Matrix.INPUT,)},
        {"matrices": (Matrix.KFAC,)},
        {"matrices": (Matrix.FISHER,)},
        {"matrices": (Matrix.FISHER,), "save_spectra": False, "kappa_p": ()},
        {"save_spectra": False},
        {"not_analysed": ()},
        {"matrices": (), "layers": ()},
        {"matrices": (), "layers": (), "snapshot_steps": ()},
        {"kappa_p": ()},
        {"kappa_p": (1.0,), "layers": LAYERS[3:], "snapshot_steps": (5,)},
    ],
    ids=["input", "kfac", "fisher", "fisher's measures", "no spectra", "all analysed", "no layers",
         "nothing", "no p", "one row"],
)  # fmt: skip
def test_less_may_be_asked_for(tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = make_spec(**changes)
    path = write_run(tmp_path / "results.h5", spec)
    assert validate_results(path) == []
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert int(tree["n_committed"]) == len(spec.snapshot_steps)
        assert ("spectra" in tree) == bool(spec.save_spectra and set(spec.matrices) - {Matrix.KFAC})


def test_the_size_is_known_beforehand(tmp_path: Path) -> None:
    for number, spec in enumerate((make_spec(), make_spec(num_snapshots=2000))):
        path = tmp_path / f"{number}.h5"
        create_results(path, spec)
        # Exact in the arrays; the descriptions are estimated.
        assert file_size(spec) == pytest.approx(path.stat().st_size, rel=0.1)


def test_a_large_file_takes_no_memory() -> None:
    wide = LayerInfo("wide", "Linear", 4096, 4096, 1, 1, 1)
    file, ranges, _ = skeleton(make_spec(num_snapshots=20_000, layers=(wide,)))
    assert file.size > 2 * 2**30
    assert sum(map(len, file.pages.values())) < 4 * 2**20
    assert sum(length for _, length in ranges) > 2 * 2**30


def test_a_spectrum_too_long_for_its_field_is_refused() -> None:
    huge = LayerInfo("head", "Linear", 2**16, 2**15, 1, 1, 1)
    with pytest.raises(
        InputError, match=r"'head' has a matrix of 2147483648 .*analysis\.layers\.exclude"
    ):
        datasets(make_spec(layers=(huge,)))


def test_each_axis_has_its_columns() -> None:
    by_axis = {axis: [d.path for d in datasets(make_spec()) if d.axis is axis] for axis in Axis}
    assert by_axis[Axis.TRAIN] == ["train/loss", "train/lr"]
    assert by_axis[Axis.EVAL][0] == "eval/epoch"
    assert by_axis[Axis.SNAPSHOT][:2] == ["step", "epoch"]
    assert by_axis[Axis.SNAPSHOT][-1] == "spectra/weight_grad/n00006/eigenvalue"
