"""A run's stored results come back under their names, cut to what is committed."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from condexp.analysis.vocabulary import Matrix
from condexp.errors import DamageError, InputError
from condexp.store import labelled_arrays
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.structure import StructuredArray
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.status import CONFIG_NAME, State, Status, write_status
from condexp.store.schema.layout import FileSpec
from tests.store.records import (
    KAPPA_P,
    LAYERS,
    eval_record,
    feed,
    few_columns,
    make_spec,
    restore_checksums,
    snapshot_record,
    step_record,
    write_run,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FileSpec]:
    """A run that stopped after ten of its steps."""
    folder = tmp_path_factory.mktemp("reader") / "mlp-digits-s1"
    folder.mkdir()
    spec = make_spec()
    create_results(folder / "results.h5", spec)
    with ResultsWriter(folder / "results.h5") as writer:
        feed(writer, spec, num_steps=10)
    return open_run(folder), spec


def test_measures_are_labelled_and_cut(running: tuple[Run, FileSpec]) -> None:
    run, spec = running
    measures = run.measures()
    assert dict(measures.sizes) == {"step": 4, "layer": 4, "p": 3}
    assert measures["step"].values.tolist() == [0, 3, 6, 9]
    assert measures["epoch"].values.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert measures["layer"].values.tolist() == [info.name for info in LAYERS]
    assert measures["p"].values.tolist() == list(KAPPA_P)
    for step in run.steps:
        snapshot = snapshot_record(spec, step).snapshot
        for name in run.layers:
            layer, found = snapshot[name], measures.sel(step=step, layer=name)
            assert layer.input is not None
            assert layer.kfac is not None
            np.testing.assert_equal(float(found["input_lambda_max"]), layer.input.lambda_max)
            np.testing.assert_equal(float(found["domination"]), layer.domination)
            kappa = [layer.kfac.kappa(p) for p in KAPPA_P]
            np.testing.assert_equal(found["kfac_kappa"].values, kappa)
            ends = [layer.kfac.kappa_interval(p) for p in KAPPA_P]
            for end, values in zip(("low", "high"), zip(*ends, strict=True), strict=True):
                np.testing.assert_equal(found[f"kfac_kappa_{end}"].values, values)
            np.testing.assert_equal(float(found["gradient_residual"]), layer.gradient_residual)
            assert found["input_status"] == str(layer.input.status)
            assert found["input_dtype"] == str(layer.input.dtype).partition(".")[2]
        coverage = measures.sel(step=step)
        assert coverage["coverage_parameters"] == snapshot.coverage.parameters
        assert coverage["coverage_gradient"] == snapshot.coverage.gradient
    assert measures["type"].values.tolist() == ["Conv2d", "Conv2d", "Linear", "Linear"]
    assert measures["d_in"].values.tolist() == [9, 3, 6, 6]
    assert measures["n_input"].values.tolist() == [9, 6, 6, 6]
    assert measures["reused"].values.tolist() == [False, False, True, False]
    assert measures["input_kappa"].attrs["units"] == "1"
    assert measures.attrs["source"] == "probe"


def test_a_large_array_is_read_in_parts(
    running: tuple[Run, FileSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A valid file of many layers and snapshots was said to be damaged."""
    run, _ = running
    whole = run.measures()
    rows: list[int] = []
    plain = StructuredArray.__getitem__

    def noted(self: StructuredArray, args: Any, new_dtype: Any = None) -> Any:
        values = plain(self, args, new_dtype)
        if self.name == "/layers/input_kappa":
            rows.append(len(values))
        return values

    monkeypatch.setattr(StructuredArray, "__getitem__", noted)
    monkeypatch.setattr(labelled_arrays, "MAX_READ", 2 * 8 * len(LAYERS) * len(KAPPA_P))
    xr.testing.assert_identical(run.measures(), whole)
    assert rows == [2, 2]


def test_some_measures_alone(running: tuple[Run, FileSpec]) -> None:
    run, _ = running
    whole, some = run.measures(), run.measures(only=("input_kappa", "input_kappa_high"))
    xr.testing.assert_identical(some["input_kappa"], whole["input_kappa"])
    left_out = {str(name) for name in whole.variables.keys() - some.variables.keys()}
    assert {"input_trace", "kfac_kappa", "weight_norm", "input_kappa_low"} <= left_out
    assert {"type", "d_in", "n_input", "p", "epoch"} <= {str(name) for name in some.variables}


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4", None])
def test_measures_can_be_kept_as_netcdf(
    running: tuple[Run, FileSpec], tmp_path: Path, engine: Any
) -> None:
    measures = running[0].measures()
    measures.to_netcdf(tmp_path / "measures.nc", engine=engine)
    with xr.open_dataset(tmp_path / "measures.nc") as again:
        xr.testing.assert_equal(again.load(), measures)
        assert (again.attrs["bias"], again.attrs["center"]) == (1, 0)
    running[0].network().to_netcdf(tmp_path / "network.nc", engine=engine)


def test_spectra_are_found_by_layer(running: tuple[Run, FileSpec]) -> None:
    run, spec = running
    for name, length in zip(run.layers, (9, 6, 6, 6), strict=True):
        spectrum = run.spectrum("input", name)
        assert dict(spectrum.sizes) == {"step": 4, "eig": length}
        for step in run.steps:
            stored = snapshot_record(spec, step).snapshot[name].input
            assert stored is not None
            np.testing.assert_equal(spectrum.sel(step=step).values, stored.eigenvalues.numpy())


def test_fisher_blocks_and_the_network(running: tuple[Run, FileSpec]) -> None:
    run, spec = running
    network = run.network()
    assert dict(network.sizes) == {"step": 4, "eig": 8, "p": 3}
    assert network["epoch"].values.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert network.attrs["source"] == "probe"
    for step in run.steps:
        snapshot = snapshot_record(spec, step).snapshot
        found, stored = network.sel(step=step), snapshot.fisher
        assert stored is not None
        np.testing.assert_equal(found["fisher_eigenvalue"].values, stored.eigenvalues.numpy())
        assert found["fisher_lambda_max"] == stored.lambda_max
        np.testing.assert_equal(found["fisher_kappa"].values, [stored.kappa(p) for p in KAPPA_P])
        assert found["fisher_status"] == "ok"
        for name in run.layers:
            block = snapshot[name].fisher
            assert block is not None
            spectrum = run.spectrum("fisher", name).sel(step=step)
            np.testing.assert_equal(spectrum.values, block.eigenvalues.numpy())


def test_a_run_without_a_fisher_matrix_says_how_to_get_one(tmp_path: Path) -> None:
    create_results(tmp_path / "results.h5", make_spec(matrices=(Matrix.INPUT,)))
    with pytest.raises(InputError, match=r"no matrix of the network.*analysis=fisher"):
        open_run(tmp_path).network()
    create_results(tmp_path / "results.h5", make_spec(save_spectra=False))
    network = open_run(tmp_path).network()
    assert dict(network.sizes) == {"step": 0, "eig": 8, "p": 3}
    assert "fisher_eigenvalue" not in network


def test_metrics_join_steps_and_evaluations(running: tuple[Run, FileSpec]) -> None:
    run, spec = running
    metrics = run.metrics
    assert metrics.index.name == "step"
    assert metrics.columns.tolist() == [
        "loss",
        "lr",
        "epoch",
        "train_loss",
        "train_error",
        "test_loss",
        "test_error",
    ]
    assert metrics.index.tolist() == list(range(10))
    assert metrics["loss"].drop(3).tolist() == [step_record(s).loss for s in range(10) if s != 3]
    assert metrics["epoch"].tolist() == [step / 6 for step in range(10)]
    evaluated = metrics["test_error"].dropna()
    assert evaluated.index.tolist() == [6]
    assert metrics.loc[6, "train_loss"] == eval_record(spec, 6).train_loss


def test_the_last_evaluation_comes_after_the_last_step(tmp_path: Path) -> None:
    path, spec = tmp_path / "results.h5", make_spec(num_snapshots=2)
    create_results(path, spec)
    with ResultsWriter(path) as writer:
        feed(writer, spec)
    metrics = open_run(path).metrics
    assert metrics.index.tolist() == list(range(7))
    assert metrics["loss"].isna().tolist() == [s in {3, 6} for s in range(7)]
    assert metrics.loc[6, "test_error"] == 12.5


def test_an_empty_run_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    create_results(path, make_spec())
    run = open_run(path)
    assert run.steps == ()
    assert run.measures().sizes["step"] == 0
    assert run.spectrum("weight", "fc").shape == (0, 4)
    assert run.metrics.empty
    assert run.status == {}
    assert run.not_analysed == ("bn: BatchNorm2d: no matrix weight",)
    assert repr(run) == f"Run('{tmp_path}')"


def test_configuration_status_and_attributes(tmp_path: Path) -> None:
    create_results(tmp_path / "results.h5", make_spec())
    assert open_run(tmp_path).config == {"model": {"name": "mlp"}, "seed": 1}
    (tmp_path / CONFIG_NAME).write_text("seed: 1\nrun: {root: outputs}\n", encoding="utf-8")
    write_status(tmp_path, Status(State.RUNNING, step=3))
    run = open_run(str(tmp_path))
    assert run.config == {"seed": 1, "run": {"root": "outputs"}}
    assert run.status["state"] == "running"
    assert run.attrs["bias"] is True
    assert run.attrs["center"] is False
    assert run.attrs["condexp_format_version"] == 3
    assert len(run.attrs["config_sha256"]) == 64


def test_a_run_goes_on_under_its_reader(tmp_path: Path) -> None:
    path, spec = tmp_path / "results.h5", make_spec()
    create_results(path, spec)
    run = open_run(path)
    with ResultsWriter(path) as writer:
        writer.on_snapshot(snapshot_record(spec, 0))
        assert list(run.steps) == [0]
        writer.on_snapshot(snapshot_record(spec, 3))
        assert list(run.steps) == [0, 3]
        assert run.measures().sizes["step"] == 2


def test_wrong_names_are_met_with_the_right_ones(
    running: tuple[Run, FileSpec], tmp_path: Path
) -> None:
    run, _ = running
    with pytest.raises(
        InputError, match=r"unknown matrix with a spectrum 'kfac'.* input, grad_out"
    ):
        run.spectrum("kfac", "fc")
    with pytest.raises(InputError, match=r"unknown layer 'fcc': .*Did you mean 'fc'\?"):
        run.spectrum("input", "fcc")
    with pytest.raises(InputError, match=r"no run at .*Did you mean '.*mlp-digits-s1'\?"):
        open_run(run.path.with_name("mlp-digit-s1"))
    with pytest.raises(InputError, match="no run at nowhere/at/all"):
        open_run("nowhere/at/all")
    with pytest.raises(InputError, match=r"no run at .*: it holds none"):
        open_run(tmp_path)
    (several := tmp_path / "several" / "one").mkdir(parents=True)
    (several / "status.json").write_text("{}")
    with pytest.raises(InputError, match=rf"folder of runs; give one of them: {several}"):
        open_run(several.parent)
    with pytest.raises(InputError, match=r"results.h5 does not exist; 'condexp status .*one'"):
        open_run(several)
    with pytest.raises(InputError, match=rf"Did you mean '{run.path}'\?"):
        open_run(run.path.parent.with_name(run.path.parent.name + "x") / run.path.name)
    (tmp_path / "results.h5").write_text("text")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        open_run(tmp_path)
    create_results(tmp_path / "results.h5", make_spec(save_spectra=False))
    with pytest.raises(InputError, match=r"kept with analysis\.save_spectra=true"):
        open_run(tmp_path).spectrum("input", "fc")


def test_a_file_whose_arrays_are_not_those_of_its_own_sizes_is_refused(tmp_path: Path) -> None:
    """Somebody made it: HDF5 reads it, and its checksums are those of what it holds."""
    path = write_run(tmp_path / "results.h5", few_columns())
    with h5py.File(path, "r+") as file:
        del file["layers/input_lambda_max"]
        file["layers/input_lambda_max"] = np.zeros((8, 8))
    restore_checksums(path)
    with pytest.raises(DamageError, match="layers/input_lambda_max has shape"):
        open_run(path)
