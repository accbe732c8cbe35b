"""Export: every committed number of a file, once, and nothing that cannot be read back."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from condexp.cli.main import main
from condexp.errors import InputError
from condexp.store import export
from condexp.store.export import COLUMNS, COLUMNS_WITH_SPECTRA, long_form, save_csv, write_csv
from condexp.store.reader import Run, open_run
from condexp.store.schema.fields import DTYPE_CODES, STATUS_CODES
from tests.store.records import KAPPA_P, LAYERS, make_spec, write_run

SPEC = make_spec()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(write_run(tmp_path_factory.mktemp("run") / "results.h5", SPEC))


@pytest.fixture(scope="module")
def table(run: Run) -> pd.DataFrame:
    return read(run)


def read(run: Run, *, spectra: bool = False) -> pd.DataFrame:
    text = io.StringIO()
    write_csv(run, text, spectra=spectra)
    text.seek(0)
    table = pd.read_csv(text, dtype=str, na_values=[""], keep_default_na=False)
    # Python's float is exact; what a CSV reader does in its place is its own affair.
    numbers = {name: float for name in table.columns if name not in {"step", "layer", "measure"}}
    return table.astype({"step": int, **numbers})


def test_the_columns(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    kinds = {name: table[name].dtype.kind for name in ("step", "epoch", "p", "value")}
    assert kinds == {"step": "i", "epoch": "f", "p": "f", "value": "f"}


def test_every_measure_is_there_once_and_exact(run: Run, table: pd.DataFrame) -> None:
    measures = run.measures()
    codes = {"status": STATUS_CODES, "dtype": DTYPE_CODES}
    names = [name for name in measures if "step" in measures[name].dims]
    assert {"input_kappa_low", "fisher_kappa_high", "gradient_residual"} <= set(names)
    of_layers = table[table["layer"].isin(run.layers)]
    found = of_layers.set_index(["measure", "step", "layer", "p"])["value"].sort_index()
    assert found.index.is_unique
    assert set(of_layers["measure"]) == set(names)
    num_kappa = sum("p" in measures[name].dims for name in names)
    per_cell = len(names) + num_kappa * (len(KAPPA_P) - 1)
    assert len(found) == len(run.steps) * len(LAYERS) * per_cell
    for name in names:
        expected = measures[name]
        code = codes.get(str(name).rpartition("_")[2])
        wanted = np.vectorize(code.__getitem__)(expected) if code else expected.to_numpy()
        rows = of_layers[of_layers["measure"] == name]
        # In the order of the file: steps, layers, fractions.
        np.testing.assert_array_equal(rows["value"], wanted.ravel())
        np.testing.assert_array_equal(
            rows["layer"], np.tile(np.repeat(run.layers, wanted[0, 0].size), len(run.steps))
        )
        if "p" in expected.dims:
            np.testing.assert_array_equal(rows["p"], np.tile(KAPPA_P, wanted[..., 0].size))
        else:
            assert rows["p"].isna().all()


def test_the_network_is_one_more_layer(run: Run, table: pd.DataFrame) -> None:
    network = run.network().drop_vars("fisher_eigenvalue")
    rows = table[table["layer"] == "network"]
    assert set(rows["measure"]) == set(network)
    for name in network:
        expected = network[name]
        code = {"fisher_status": STATUS_CODES, "fisher_dtype": DTYPE_CODES}.get(str(name))
        wanted = np.vectorize(code.__getitem__)(expected) if code else expected.to_numpy()
        own = rows[rows["measure"] == name]
        np.testing.assert_array_equal(own["value"], wanted.ravel())
        np.testing.assert_array_equal(own["step"], np.repeat(run.steps, wanted[0].size))
        p = np.tile(KAPPA_P, len(run.steps)) if "p" in expected.dims else np.nan
        np.testing.assert_array_equal(own["p"], np.broadcast_to(p, len(own)))


def test_losses_and_errors(run: Run, table: pd.DataFrame) -> None:
    metrics = run.metrics
    rows = table[table["layer"].isna()]
    coverage = {"coverage_parameters", "coverage_gradient"}
    assert set(rows["measure"]) == {*metrics.columns, *coverage} - {"epoch"}
    for each in sorted(coverage):
        share = rows[rows["measure"] == each]
        np.testing.assert_array_equal(share["step"], run.steps)
        np.testing.assert_array_equal(share["value"], run.measures()[each])
    for name, group in rows[~rows["measure"].isin(coverage)].groupby("measure"):
        np.testing.assert_array_equal(group["value"], metrics[str(name)].loc[group["step"]])
    assert (rows["measure"] == "loss").sum() == SPEC.num_train_steps
    assert (rows["measure"] == "test_error").sum() == len(SPEC.eval_steps)


def test_epochs(table: pd.DataFrame) -> None:
    np.testing.assert_array_equal(table["epoch"], table["step"] / SPEC.steps_per_epoch)


def test_spectra(run: Run, table: pd.DataFrame) -> None:
    whole = read(run, spectra=True)
    assert tuple(whole.columns) == COLUMNS_WITH_SPECTRA
    rest = whole[whole["eig"].isna()].drop(columns="eig").reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, table)
    own = whole[whole["eig"].notna()]
    for matrix in ("input", "grad_output", "fisher", "weight", "weight_grad"):
        for layer in (*run.layers, *["network"] * (matrix == "fisher")):
            rows = own[(own["measure"] == f"{matrix}_eigenvalue") & (own["layer"] == layer)]
            whole_network = run.network()["fisher_eigenvalue"]
            expected = whole_network if layer == "network" else run.spectrum(matrix, layer)
            np.testing.assert_array_equal(rows["value"], expected.to_numpy().ravel())
            np.testing.assert_array_equal(rows["step"], np.repeat(run.steps, expected.shape[1]))
            np.testing.assert_array_equal(
                rows["eig"], np.tile(np.arange(expected.shape[1]), len(run.steps))
            )
    assert set(own["measure"]) == {
        f"{m}_eigenvalue" for m in ("input", "grad_output", "fisher", "weight", "weight_grad")
    }


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_blocks_make_no_difference(run: Run, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = io.StringIO()
    write_csv(run, expected, spectra=True)
    monkeypatch.setattr(export, "BLOCK_ROWS", rows)
    frames = list(long_form(run, spectra=True))
    # A block holds one step at least.
    assert all(len(frame) <= rows or frame["step"].nunique() == 1 for frame in frames)
    assert len(frames) > 10
    found = io.StringIO()
    write_csv(run, found, spectra=True)
    assert found.getvalue() == expected.getvalue()


def test_only_what_is_committed(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "results.h5", SPEC, num_steps=7))
    table = read(run)
    assert table["step"].max() == 7 - 1
    assert set(table[table["layer"].notna()]["step"]) == {0, 3, 6}


def test_a_run_without_analysis_or_without_a_step(tmp_path: Path) -> None:
    spec = make_spec(layers=(), matrices=(), snapshot_steps=(), not_analysed=())
    table = read(open_run(write_run(tmp_path / "a.h5", spec)))
    assert table["layer"].isna().all()
    assert len(table) == 2 * spec.num_train_steps + 4 * len(spec.eval_steps)
    table = read(open_run(write_run(tmp_path / "b.h5", SPEC, num_steps=0)))
    assert tuple(table.columns) == COLUMNS
    assert table.empty


def test_no_spectra(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "results.h5", make_spec(save_spectra=False)))
    text = io.StringIO()
    with pytest.raises(InputError, match=r"holds no spectra.*analysis\.save_spectra=true"):
        write_csv(run, text, spectra=True)
    assert text.getvalue() == ""


def test_a_file_is_written_whole_or_not_at_all(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "numbers.csv"
    save_csv(run, path)
    text = io.StringIO()
    write_csv(run, text)
    assert path.read_text() == text.getvalue()

    def full_disk(*_: object, **__: object) -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"step": [1]})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "long_form", full_disk)
    with pytest.raises(InputError, match=r"numbers.csv cannot be written: No space left"):
        save_csv(run, path)
    assert path.read_text() == text.getvalue()
    assert list(path.parent.iterdir()) == [path]


def test_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    write_csv(run, text)
    assert main(["export", str(run.file)]) == 0
    assert capsys.readouterr().out == text.getvalue()
    target = tmp_path / "numbers.csv"
    assert main(["export", str(run.path), "--output", str(target), "--spectra"]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    assert target.read_text().splitlines()[0] == ",".join(COLUMNS_WITH_SPECTRA)
    assert main(["export", str(tmp_path / "nothing")]) == 2
    assert "no run at" in capsys.readouterr().err
