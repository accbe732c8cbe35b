"""EKFAC of a run, and how close approximations are: in its file, read back, shown and tabled."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import condexp
from condexp.analysis.vocabulary import CLOSENESS, NETWORK_CLOSENESS
from condexp.cli.main import main
from condexp.errors import InputError
from condexp.store.hdf5.validate import validate_results
from tests.in_process import run

TINY = ["trainer.steps=4", "dataset.subset.train=40", "dataset.subset.test=20", "model.depth=3"]
EVERY = ["analysis.schedule.every_steps=2", "analysis.schedule.log_spaced=null", "model.width=8"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    matrices = "analysis.matrices=[input,grad_output,kfac,ekfac,fisher]"
    folder = run(tmp_path_factory.mktemp("runs"), *TINY, *EVERY, matrices).folder
    assert folder is not None
    return folder


def test_what_is_read_back(stored: Path) -> None:
    assert validate_results(stored / "results.h5") == []
    with h5py.File(stored / "results.h5") as file:
        assert file.attrs["condexp_format_version"] == 4
        assert "ekfac" not in file["spectra"]
    run_ = condexp.open_run(stored)
    layers, network = run_.measures(), run_.network()
    np.testing.assert_allclose(layers["ekfac_trace"], layers["fisher_trace"], rtol=1e-6)
    errors = [layers[f"{name}_relative_error"].to_numpy() for name in ("ekfac", "kfac")]
    assert (errors[0] <= errors[1]).all()
    assert (errors[0] > 0).all()
    cosine, error = (network[name].to_numpy() for name in NETWORK_CLOSENESS)
    np.testing.assert_allclose(cosine**2 + error**2, 1.0)
    # The blocks' norms are those of their eigenvalues.
    spectra = [run_.spectrum("fisher", name).to_numpy() for name in run_.layers]
    blocks = sum(np.square(values).sum(axis=1) for values in spectra)
    whole = np.square(network["fisher_eigenvalue"].to_numpy()).sum(axis=1)
    np.testing.assert_allclose(cosine, np.sqrt(blocks / whole), rtol=1e-6)
    assert np.isnan(run_.measures(p=[0.31])["ekfac_kappa"]).all()
    with pytest.raises(InputError, match="unknown matrix with a spectrum 'ekfac'"):
        run_.spectrum("ekfac", run_.layers[0])


def test_what_is_shown_and_tabled(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(stored)]) == 0
    shown = capsys.readouterr().out
    for text in ("EKFAC", "error", "its diagonal blocks alone: cosine 0."):
        assert text in shown
    measures = [word for name in CLOSENESS for word in ("--measure", name)]
    assert main(["show", str(stored), *measures, "--sort", "ekfac_kappa_0.5"]) == 0
    frame = condexp.collect(stored)
    for name in CLOSENESS:
        assert frame[f"last_linear.{name}"].notna().all()
    for name in NETWORK_CLOSENESS:
        assert frame[f"network.{name}"].notna().all()
    capsys.readouterr()
    assert main(["export", str(stored)]) == 0
    exported = capsys.readouterr().out
    for name in (*CLOSENESS, *NETWORK_CLOSENESS):
        assert f",{name}," in exported


def test_a_file_without_both_has_neither(tmp_path: Path) -> None:
    """So files of the settings that there were before keep their arrays."""
    for matrices, version in (("[kfac,ekfac]", 4), ("[kfac,fisher]", 3)):
        folder = run(tmp_path, *TINY, *EVERY, f"analysis.matrices={matrices}").folder
        assert folder is not None
        run_ = condexp.open_run(folder)
        assert not set(CLOSENESS) & set(run_.measures())
        with h5py.File(folder / "results.h5") as file:
            assert file.attrs["condexp_format_version"] == version
            assert "network/block_diagonal_cosine" not in file


def test_what_a_configuration_cannot_mean_is_refused(tmp_path: Path) -> None:
    probe = ["analysis.source=probe", "analysis.probe.mode=eval", "analysis.probe.size=40"]
    exact = ["analysis.fisher_type=exact", *probe]
    for settings, message in (
        (["analysis.center=true"], "exclude each other"),
        (["analysis.weight_sharing=reduce"], "needs weight_sharing='expand'"),
        ([*exact, "analysis.memory_limit=1e-6"], "ekfac of 40 samples × 9 signals needs"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, *TINY, *EVERY, "analysis.matrices=[ekfac]", *settings)


def test_a_measure_of_closeness_can_be_the_objective(tmp_path: Path) -> None:
    matrices = "analysis.matrices=[ekfac,fisher]"
    name = "run.objective=last_linear.ekfac_relative_error"
    assert run(tmp_path, *TINY, *EVERY, matrices, name).folder is not None
    with pytest.raises(InputError, match=r"unknown run\.objective"):
        run(tmp_path, *TINY, *EVERY, "analysis.matrices=[ekfac]", name)
