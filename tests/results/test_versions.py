"""Runs stored by earlier versions of the format are read by every command that reads."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from condexp.cli.main import main
from condexp.errors import InputError
from condexp.results.collect import collect
from condexp.results.layer_measures import LayerMeasures
from condexp.store.hdf5.seal import seal_results
from condexp.store.hdf5.validate import validate_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.reader import open_run
from condexp.store.run_folder.checkpoints import (
    RunFingerprint,
    check_resumable,
    find_checkpoint,
)
from condexp.store.schema.layout import SEALED
from condexp.training.checkpoint import read_checkpoint
from tests.store.records import make_spec

ARCHIVES = Path(__file__).parent.parent / "store" / "archives"
VERSIONS = (1, 2, 3)
KINDS = ("sealed", "unsealed")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, sealed, and one that was interrupted, of each version."""
    root = tmp_path_factory.mktemp("archives")
    for version in VERSIONS:
        with tarfile.open(ARCHIVES / f"version{version}.tar.gz") as archive:
            archive.extractall(root / str(version), filter="data")
    return root


@pytest.fixture(scope="module", params=[f"{v}/{kind}" for v in VERSIONS for kind in KINDS])
def folder(request: pytest.FixtureRequest, stored: Path) -> Path:
    found: Path = stored / request.param
    return found


def test_it_is_whole_and_says_its_version(folder: Path) -> None:
    run = open_run(folder)
    assert run.attrs["condexp_format_version"] == int(folder.parent.name)
    assert (SEALED in run.attrs) == (folder.name == "sealed")
    assert validate_results(folder / "results.h5") == []
    assert main(["validate", str(folder)]) == 0


def test_its_measures_are_read(folder: Path) -> None:
    run, new = open_run(folder), folder.parent.name != "1"
    measures = run.measures()
    assert measures.sizes["step"] == len(run.steps) > 2
    assert ("input_kappa_high" in measures) is new
    assert ("gradient_residual" in measures) is new
    assert ("coverage_gradient" in run.network()) is new
    last = LayerMeasures.read(run)
    np.testing.assert_array_equal(
        last.interval("input_kappa_0.5")[1].shape, last.marks("domination").shape
    )
    assert np.isnan(last.interval("input_kappa_0.5")).all() or new
    assert run.spectrum("fisher", "fc").sizes["step"] == len(run.steps)
    assert len(run.metrics)


def test_every_reading_command_takes_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "network: Fisher λ_max" in out
    assert "∞" not in out  # those of this run are infinite for want of rows
    assert main(["export", str(folder), "--spectra", "--output", str(tmp_path / "all.csv")]) == 0
    table = pd.read_csv(tmp_path / "all.csv")
    assert {"input_kappa", "fisher_eigenvalue", "loss"} <= set(table["measure"])
    rows = ["--rows", "model.depth", "--value", "last_linear.grad_output_kappa_0.5"]
    assert main(["table", str(folder), *rows]) == 0
    assert main(["figure", "overview", str(folder), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "overview.csv").is_file()
    assert main(["status", str(folder)]) == 0


def test_they_are_collected_together(stored: Path) -> None:
    frame = collect(stored)
    assert sorted(frame["state"].unique()) == ["complete", "interrupted"]
    assert frame["fc.input_kappa_0.5"].notna().all()


@pytest.mark.parametrize("version", ["1", "2"])
def test_an_unfinished_run_of_an_older_version_is_refused_before_anything_changes(
    stored: Path, tmp_path: Path, version: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stored / version / "unsealed", folder)
    before = (folder / "results.h5").read_bytes()
    message = (
        f"has format version {version}, which can be read but not added to: .* belong to version 3"
    )
    with pytest.raises(InputError, match=message):
        ResultsWriter(folder / "results.h5")
    checkpoint = read_checkpoint(folder / "checkpoint.pt")
    fingerprint = RunFingerprint(checkpoint.config_sha256, checkpoint.data_sha256)
    message = f"the run cannot resume: .*{message}.* Give run.on_existing=restart"
    with pytest.raises(InputError, match=message):
        find_checkpoint(
            folder, lambda found: check_resumable(folder, make_spec(), fingerprint, found)
        )
    assert (folder / "results.h5").read_bytes() == before


def test_a_version_1_file_is_sealed_as_version_1(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    shutil.copy(stored / "1" / "unsealed" / "results.h5", path)
    seal_results(path)
    assert validate_results(path) == []
    assert open_run(path).attrs["condexp_format_version"] == 1
