"""Hessian and Gauss–Newton matrix of a run: in its file, read back, drawn and told."""

from io import StringIO
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import condexp
from condexp.cli.main import main
from condexp.errors import InputError
from condexp.store.hdf5.validate import validate_results
from tests.in_process import run

TINY = ["trainer.steps=6", "dataset.subset.train=40", "dataset.subset.test=20", "model.depth=3"]
EVERY = ["analysis.schedule.every_steps=2", "analysis.schedule.log_spaced=null"]
BOTH = "analysis.matrices=[input,hessian,ggn]"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run(tmp_path_factory.mktemp("runs"), *TINY, *EVERY, "model.width=8", BOTH).folder
    assert folder is not None
    return folder


def test_one_linear_layer_is_the_closed_form(tmp_path: Path) -> None:
    """H = 2/C · Σ_x ⊗ I in the very snapshot that has Σ_x, float32: to what its errors say."""
    folder = run(
        tmp_path,
        "model=linear",
        "dataset=gaussian",
        "dataset.dim=60",
        "dataset.num_outputs=3",
        "trainer.batch_size=full",
        "trainer.steps=3",
        "analysis.top_k=4",
        BOTH,
    ).folder
    assert folder is not None
    stored = condexp.open_run(folder)
    (layer,) = stored.layers
    sizes, table = stored.measures(), stored.measures().sel(layer=layer)
    num_outputs = int(sizes["d_out"][0])
    moments = stored.spectrum("input", layer).to_numpy()
    expected = np.repeat(2 / num_outputs * moments, num_outputs, axis=1)[:, :4]
    for matrix in ("hessian", "ggn"):
        found = stored.spectrum(matrix, layer).to_numpy()
        errors = table[f"{matrix}_eigenvalue_error"].to_numpy()
        assert (np.abs(found - expected) <= errors + 1e-6 * expected).all()
        trace = 2 * moments.sum(axis=1)
        off = np.abs(table[f"{matrix}_trace"].to_numpy() - trace)
        assert (off <= table[f"{matrix}_trace_error"].to_numpy() + 1e-6 * trace).all()


def test_the_file_is_of_its_version_and_valid(stored: Path, tmp_path: Path) -> None:
    assert validate_results(stored / "results.h5") == []
    with h5py.File(stored / "results.h5") as file:
        assert file.attrs["condexp_format_version"] == 4
        assert file["network/hessian_eigenvalue"].shape == (4, 5)
        assert file["layers/ggn_density"].dims[2].keys() == ["point"]
    plain = run(tmp_path, *TINY, "analysis.matrices=[input]").folder
    assert plain is not None
    with h5py.File(plain / "results.h5") as file:
        assert file.attrs["condexp_format_version"] == 3
        assert "network" not in file
    assert condexp.open_run(plain).curvature == ()


def test_what_is_read_back(stored: Path) -> None:
    run_ = condexp.open_run(stored)
    assert run_.curvature == ("hessian", "ggn")
    network, layers = run_.network(), run_.measures()
    assert network["hessian_status"].to_numpy().tolist() == ["ok"] * 4
    values = network["hessian_eigenvalue"].to_numpy()
    assert (np.diff(values, axis=1) <= 0).all()
    np.testing.assert_array_equal(values[:, 0], network["hessian_lambda_max"])
    np.testing.assert_allclose(network["ggn_density"].sum("point"), 1.0)
    assert (network["ggn_lambda_max"] > 0).all()
    # A block's largest eigenvalue is no larger than the network's (interlacing).
    assert (layers["hessian_lambda_max"].max("layer") <= network["hessian_lambda_max"] + 1e-3).all()
    frame = condexp.collect(stored)
    assert frame["network.hessian_lambda_max"].item() == pytest.approx(values[-1, 0])
    assert frame["last_linear.ggn_trace"].notna().all()


def test_the_network_alone(tmp_path: Path) -> None:
    way = ["model.width=8", "analysis.matrices=[hessian]", "analysis.layer_blocks=false"]
    folder = run(tmp_path, *TINY, *EVERY, *way).folder
    assert folder is not None
    assert "hessian_lambda_max" not in condexp.open_run(folder).measures()
    assert condexp.open_run(folder).network()["hessian_lambda_max"].notnull().all()


def test_commands(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (
        ["show", str(stored)],
        ["show", str(stored), "--measure", "hessian_lambda_max"],
        ["export", str(stored / "results.h5")],
        ["figure", "density", str(stored), "--output", str(tmp_path)],
        ["figure", "density", str(stored), "--layer", "fc", "--matrix", "ggn"],
        ["figure", "sharpness", str(stored), "--output", str(tmp_path)],
        ["figure", "spectrum", str(stored), "--matrix", "hessian", "--output", str(tmp_path)],
        ["table", str(stored), "--rows", "model.name", "--value", "network.hessian_trace"],
    ):
        assert main(verb) == 0, verb
    said = capsys.readouterr().out
    assert "network: hessian λ_max = " in said
    assert "fc,hessian_lambda_max," in said
    edges = (tmp_path / "sharpness.csv").read_text().splitlines()
    assert edges[0].startswith("step,lambda_max,error,edge,")
    assert edges[1].split(",")[3] == "20.0"  # 2 / 0.1


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (["trainer.precision=bf16"], r"set analysis\.network_precision=float64"),
        (["trainer.num_processes=2"], r"measure matrices with condexp analyze"),
        (["analysis.top_k=0"], r"analysis\.top_k"),
    ],
)
def test_refusals(tmp_path: Path, way: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(tmp_path, *TINY, "analysis.matrices=[hessian]", *way)


def test_export_has_every_eigenvalue_and_the_density(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many rows as the file has numbers, each at its step, layer, index or point."""
    run_ = condexp.open_run(stored)
    assert main(["export", str(stored), "--spectra"]) == 0
    frame = pd.read_csv(StringIO(capsys.readouterr().out))
    for source, layer in ((run_.network(), "network"), (run_.measures(), run_.layers[1])):
        table = source if layer == "network" else source.sel(layer=layer)
        for name in ("hessian_eigenvalue", "ggn_eigenvalue_error", "hessian_density"):
            along = "point" if name.endswith("density") else "eig"
            for step in run_.steps:
                chosen = (frame[["measure", "layer", "step"]] == [name, layer, step]).all(axis=1)
                found = frame[chosen].set_index(along)["value"]
                expected = table[name].sel(step=step)
                np.testing.assert_array_equal(found, expected)
                if along == "point":
                    np.testing.assert_allclose(found.index, table["point"], rtol=1e-12)
