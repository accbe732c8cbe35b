"""Every number arrives in its place, and only what the schedule allows."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from condexp.analysis.vocabulary import LAYER_MEASURES, SPECTRUM_MEASURES, Matrix
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.row_checks import row_checksums
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.schema.fields import DTYPE_CODES, STATUS_CODES
from condexp.store.schema.layout import FileSpec
from condexp.training.events import SnapshotRecord
from tests.store.records import (
    KAPPA_P,
    MATRICES,
    counters,
    eval_record,
    feed,
    make_spec,
    snapshot_record,
    step_record,
    write_run,
)


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
                for name in (*LAYER_MEASURES, "gradient_residual"):
                    equal(layers[name][row, column], getattr(layer, name))
                for matrix in MATRICES:
                    spectrum = getattr(layer, matrix)
                    for name in (*SPECTRUM_MEASURES, "noise_floor"):
                        equal(layers[f"{matrix}_{name}"][row, column], getattr(spectrum, name))
                    kappa = [spectrum.kappa(p) for p in KAPPA_P]
                    equal(layers[f"{matrix}_kappa"][row, column], kappa)
                    ends = np.array([spectrum.kappa_interval(p) for p in KAPPA_P])
                    equal(layers[f"{matrix}_kappa_low"][row, column], ends[:, 0])
                    equal(layers[f"{matrix}_kappa_high"][row, column], ends[:, 1])
                    status = STATUS_CODES[spectrum.status]
                    assert layers[f"{matrix}_status"][row, column] == status
                    dtype = DTYPE_CODES[str(spectrum.dtype).partition(".")[2]]
                    assert layers[f"{matrix}_dtype"][row, column] == dtype
                    if matrix is not Matrix.KFAC:
                        group = file[f"spectra/{matrix}/n{len(spectrum):05d}"]
                        member = group["layer_index"][:].tolist().index(column)
                        equal(group["eigenvalue"][row, member], spectrum.eigenvalues.numpy())
            whole, network = record.snapshot.fisher, file["network"]
            assert whole is not None
            for name in (*SPECTRUM_MEASURES, "noise_floor"):
                equal(network[f"fisher_{name}"][row], getattr(whole, name))
            equal(network["fisher_kappa"][row], [whole.kappa(p) for p in KAPPA_P])
            ends = np.array([whole.kappa_interval(p) for p in KAPPA_P])
            equal(network["fisher_kappa_low"][row], ends[:, 0])
            equal(network["fisher_kappa_high"][row], ends[:, 1])
            equal(file["coverage_parameters"][row], record.snapshot.coverage.parameters)
            equal(file["coverage_gradient"][row], record.snapshot.coverage.gradient)
            equal(network["fisher_eigenvalue"][row], whole.eigenvalues.numpy())
            assert network["fisher_status"][row] == STATUS_CODES[whole.status]
            assert network["fisher_dtype"][row] == DTYPE_CODES["float64"]
        for step in range(spec.num_train_steps):
            equal(file["train/loss"][step], step_record(step).loss)
            assert file["train/lr"][step] == step_record(step).lr
        for row, step in enumerate(spec.eval_steps):
            evaluation = eval_record(spec, step)
            for name in ("epoch", "train_loss", "train_error", "test_loss", "test_error"):
                assert file[f"eval/{name}"][row] == getattr(evaluation, name)
    # Degenerate spectra, infinite condition numbers and NaN were really among them.
    with h5py.File(path) as file:
        assert {1, 2, 3, 4, 5} == set(file["layers/input_status"][:].ravel())
        assert np.isinf(file["layers/kfac_kappa_high"][:]).any()
    assert counters(path) == (8, 24, 4)


def test_a_layer_that_is_not_measured_this_time_is_absent(tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "results.h5"
    create_results(path, spec)
    whole = snapshot_record(spec, 0)
    part = replace(whole.snapshot, records=whole.snapshot.records[1:], fisher=None)
    with ResultsWriter(path) as writer:
        writer.on_snapshot(SnapshotRecord(0, 0.0, part))
    with h5py.File(path) as file:
        assert file["layers/input_status"][0].tolist()[0] == STATUS_CODES["absent"]
        assert np.isnan(file["layers/kfac_kappa"][0, 0]).all()
        assert np.isnan(file["spectra/input/n00009/eigenvalue"][0]).all()
        assert file["network/fisher_status"][0] == STATUS_CODES["absent"]
        for name in ("lambda_max", "kappa", "eigenvalue"):
            assert np.isnan(file[f"network/fisher_{name}"][0]).all()
        assert file["layers/weight_norm"][0, 1] == part.records[0].weight_norm
    assert validate_results(path) == []


def test_a_checksum_of_zero_is_kept_for_rows_not_written() -> None:
    # The CRC-32 of these four bytes is 0, as a table of CRC inverses gives them.
    zero = bytes.fromhex("9d0ad96d")
    assert row_checksums([zero]).tolist() == [1]
    # The check value that every CRC-32 is published with.
    assert row_checksums([b"123456789"]).tobytes() == 0xCBF43926.to_bytes(4, "little")


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
    monkeypatch.setattr("time.monotonic", lambda: now)
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
