"""The figures that one draws of a run, or of a few, from the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from condexp.cli.main import main
from condexp.results.figures.compare import compare
from condexp.results.figures.spectrum import spectrum
from condexp.results.figures.style import Size
from condexp.store.reader import open_run
from tests.results.stored import write_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        write_run(root / f"{norm}-{seed}", seed=seed, model__norm=norm, save_spectra=True)
        for norm in ("none", "batch")
        for seed in (1, 2)
    ]


def test_a_spectrum_from_the_command_line(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["figure", "spectrum", str(folders[0]), "--output", str(tmp_path)]
    assert main([*arguments, "--layer", "fc", "--matrix", "input", "--size", "column"]) == 0
    assert "spectrum-fc-input.png" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "spectrum-fc-input.csv")
    stored = open_run(folders[0]).spectrum("input", "fc")
    np.testing.assert_array_equal(table["value"], stored.to_numpy().ravel())
    assert main([*arguments, "--layer", "fcc"]) == 2
    assert "Did you mean 'fc'?" in capsys.readouterr().err
    assert main(["figure", "overview", str(folders[0]), "--layer", "fc"]) == 2
    assert "overview takes no --layer: spectrum, density and compare do" in capsys.readouterr().err


def test_the_noise_floor_is_drawn_and_zeros_are_counted(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setitem(spectrum.__globals__, "save", lambda figure, *_: drawn.append(figure))
    run = open_run(folders[0])
    spectrum([run], tmp_path, size=Size.TEXT, layer="hidden")
    scree = drawn[0].axes[0]
    assert (scree.get_xscale(), scree.get_yscale()) == ("log", "log")
    floors = run.measures()["input_noise_floor"].sel(layer="hidden").to_numpy()
    levels = {float(np.asarray(line.get_ydata())[0]) for line in scree.lines}
    assert {float(floors[0]), float(floors[-1])} <= levels
    legend = scree.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    zeros = int((run.spectrum("input", "hidden").isel(step=0) == 0).sum())
    assert words[0] == "step 0" + (f", {zeros} of 8 are 0" if zeros else "")
    assert words[-1] == "noise floor"


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ({"measure": "test_error"}, "test_error"),
        ({"measure": "input_kappa_0.5", "layer": "fc"}, "input_kappa_0.5"),
    ],
)
def test_runs_in_one_plot_are_named_by_what_tells_them_apart(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    column: str,
) -> None:
    drawn: list[tuple[Figure, pd.DataFrame]] = []
    monkeypatch.setitem(compare.__globals__, "save", lambda f, data, *_: drawn.append((f, data)))
    compare([open_run(folder) for folder in folders], tmp_path, size=Size.TEXT, **options)
    ((figure, table),) = drawn
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [sorted(word.split()) for word in words] == [
        [f"model.norm={norm}", f"seed={seed}"] for norm in ("none", "batch") for seed in (1, 2)
    ]
    first = table[table["run"] == str(folders[0])]
    run = open_run(folders[0])
    if column == "test_error":
        assert first["value"].tolist() == run.metrics["test_error"].dropna().tolist()
    else:
        kappa = run.measures()["input_kappa"].sel(layer="fc", p=0.5)
        assert first["value"].tolist() == kappa.to_numpy().tolist()


def test_without_a_layer_the_median_of_all_is_drawn(folders: list[Path], tmp_path: Path) -> None:
    options = ["--measure", "input_lambda_max", "--output", str(tmp_path)]
    assert main(["figure", "compare", *map(str, folders), *options]) == 0
    table = pd.read_csv(tmp_path / "compare-input_lambda_max.csv")
    values = open_run(folders[0]).measures()["input_lambda_max"].to_numpy()
    own = table[table["run"] == str(folders[0])]["value"]
    np.testing.assert_array_equal(own, np.median(values, axis=1))


def test_wrong_names_are_met(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--measure", "tst_error"], "unknown measure 'tst_error'"),
        (["--measure", "test_error", "--layer", "fc"], "is of the whole run: leave out --layer"),
        (["--layer", "fcc"], "unknown layer 'fcc'. Did you mean 'fc'?"),
    ):
        assert main(["figure", "compare", str(folders[0]), *options]) == 2
        assert message in capsys.readouterr().err
