import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from condexp.errors import InputError
from condexp.results.figures import NAMES, find_figure
from condexp.results.figures.heatmap import label_layers, map_height
from condexp.results.figures.overview import overview
from condexp.results.figures.steps import StepAxis
from condexp.results.figures.style import EXTENSIONS, new_figure, style
from condexp.results.layer_names import short_names
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.status import State
from tests.results.stored import LAYERS, WITH_BLOCKS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(write_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def drawn(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return overview([run], tmp_path_factory.mktemp("drawn") / "new folder")


def read_csv(paths: Sequence[Path]) -> pd.DataFrame:
    return pd.read_csv(paths[3], keep_default_na=False, na_values={"value": [""]})


def test_four_files_and_the_table_of_figures(drawn: tuple[Path, ...]) -> None:
    assert [path.name for path in drawn] == [f"overview.{extension}" for extension in EXTENSIONS]
    assert drawn[0].read_bytes().startswith(b"%PDF")
    assert ElementTree.parse(drawn[2]).getroot().get("width") == f"{7.2 * 72:g}pt"
    height, width = imread(drawn[1]).shape[:2]
    assert width == 7.2 * 220
    assert height > width / 2
    assert all(find_figure(name).__doc__ for name in NAMES)


def test_the_same_files_give_the_same_bytes(
    run: Run, drawn: tuple[Path, ...], tmp_path: Path
) -> None:
    # Whatever the user's own settings are, and they come back.
    with mpl.rc_context({"font.size": 20, "savefig.dpi": 50, "axes.facecolor": "black"}):
        again = overview([run], tmp_path)
        assert mpl.rcParams["font.size"] == 20
    for first, second in zip(drawn, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    pdf = drawn[0].read_bytes()
    svg = drawn[2].read_bytes()
    assert b"CreationDate" not in pdf
    assert b"<dc:date>" not in svg
    assert b"Matplotlib" not in pdf + drawn[1].read_bytes() + svg


def test_the_csv_holds_what_the_file_holds(run: Run, drawn: tuple[Path, ...]) -> None:
    table, measures = read_csv(drawn), run.measures()
    panels = ["input", "grad_output", "kfac"]
    kinds = ["lambda_max", "kappa_0.5"]
    curves = ["loss", "train_loss", "test_loss", "train_error", "test_error"]
    names = [f"{panel}_{kind}" for kind in kinds for panel in panels]
    assert table["panel"].drop_duplicates().tolist() == [*names, *curves]
    for panel in panels:
        values = table[table["panel"] == f"{panel}_lambda_max"]["value"].to_numpy()
        np.testing.assert_array_equal(values, measures[f"{panel}_lambda_max"].to_numpy().ravel())
    kappa = table[table["panel"] == "input_kappa_0.5"].set_index(["layer", "step"])
    assert kappa.loc[("conv", 5), "value"] == 16
    assert kappa.loc[("dead", 2), "mark"] == "nonfinite"
    errors = table[table["panel"] == "test_error"]
    assert errors["step"].tolist() == [2, 4, 6]
    assert errors["value"].tolist() == [50.0, 20.0, 30.0]


def test_lower_bounds_are_hatched_and_named(tmp_path: Path) -> None:
    bound = open_run(write_run(tmp_path / "run", bounded=["fc"]))
    table = read_csv(overview([bound], tmp_path))
    rows = table[(table["panel"] == "input_kappa_0.5") & (table["layer"] == "fc")]
    assert rows["mark"].unique().tolist() == ["at_least"]
    assert rows["value"].tolist() == rows["low"].astype(float).tolist() == [2.0] * 4
    assert rows["high"].astype(float).tolist() == [math.inf] * 4
    assert table[table["panel"] == "loss"]["high"].eq("").all()


def test_another_fraction(run: Run, tmp_path: Path) -> None:
    table = read_csv(overview([run], tmp_path, "kappa_1", p=1))
    marks = table[table["panel"] == "input_kappa_1.0"].groupby("layer")["mark"].unique()
    assert marks["hidden"].tolist() == ["rows"]
    assert marks["conv"].tolist() == ["infinite"]
    assert set(marks["dead"]) == {"zero", "unreliable", "nonfinite"}
    assert marks["fc"].tolist() == ["none"]
    with pytest.raises(InputError, match=r"kappa_0.5, kappa_1.0"):
        overview([run], tmp_path, p=0.7)


def test_infinite_cells_are_grey_and_hatched_not_coloured(run: Run, tmp_path: Path) -> None:
    # viridis has no grey: pixels of equal red, green and blue in a dark grey are the ∞ cells.
    def share(path: Path) -> float:
        pixels = imread(path)[..., :3]
        return float(np.isclose(pixels, 0x9A / 255, atol=0.002).all(axis=-1).mean())

    with_infinite, without = overview([run], tmp_path, "a", p=1.0), overview([run], tmp_path, "b")
    assert share(with_infinite[1]) > 10 * share(without[1])


@pytest.mark.parametrize(
    ("steps_done", "panels"),
    [
        (1, ["input_lambda_max", "loss"]),  # one snapshot, no evaluation yet
        (3, ["input_lambda_max", "loss", "test_error"]),
    ],
)
def test_a_run_that_goes_on(steps_done: int, panels: list[str], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state=State.RUNNING, steps_done=steps_done)
    table = read_csv(overview([open_run(folder)], tmp_path))
    assert set(panels) <= set(table["panel"])


def test_a_run_before_its_first_step_has_no_picture(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state=State.RUNNING, steps_done=0)
    with pytest.raises(InputError, match="overview: there is nothing to draw"):
        overview([open_run(folder)], tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()


def test_a_run_that_diverged_and_one_without_errors(tmp_path: Path) -> None:
    lost = write_run(tmp_path / "a", state=State.DIVERGED, steps_done=4, diverges_at=3)
    table = read_csv(overview([open_run(lost)], tmp_path))
    assert table[table["panel"] == "loss"]["step"].tolist() == [0, 1, 2]
    regression = write_run(tmp_path / "b", test_errors=(math.nan,) * 3)
    table = read_csv(overview([open_run(regression)], tmp_path))
    assert not table["panel"].str.endswith("_error").any()
    bare = write_run(tmp_path / "c", layers=(), snapshot_steps=())
    assert "loss" in set(read_csv(overview([open_run(bare)], tmp_path))["panel"])


def test_sixty_layers_keep_readable_names() -> None:
    names = [f"stages.{i // 20}.blocks.{i}.convolution" for i in range(60)]
    with style():
        axes = new_figure(7, map_height(60)).subplots()
        label_layers(axes, names)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    ticks = axes.get_yticks()
    assert 72 * map_height(60) / 60 * np.diff(ticks).min() >= 7  # points between two names
    assert ticks[[0, -1]].tolist() == [0, 59]
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 24
    assert axes.get_ylabel() == "layers (1 in 2 named)"


def test_names_of_transformers_stay_readable() -> None:
    block = "encoder.layers.encoder_layer_1"
    names = [f"{block}.self_attention.in_proj", f"{block}.mlp.0", f"{block}.mlp.3", "heads.head"]
    assert short_names(names) == [
        "encoder1.self_at.in_proj",
        "encoder_layer_1.mlp.0",
        "encoder_layer_1.mlp.3",
        "heads.head",
    ]
    both = [f"{coder}.layers.attention.projection" for coder in ("encoder", "decoder")]
    assert len(set(short_names(both))) == 2


def test_deep_and_shallow_figures_stay_on_a_page(tmp_path: Path) -> None:
    deep = [replace(LAYERS[3], name=f"layers.{i}") for i in range(120)]
    # Any name is known to the records by its place; all are the last layer's.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.results.stored.LAYERS", tuple(deep))
        folder = write_run(tmp_path / "run", layers=deep)
    height, width = imread(overview([open_run(folder)], tmp_path)[1]).shape[:2]
    assert height < 1.4 * width


def test_two_snapshots_do_not_begin_long_before_step_0() -> None:
    axis = StepAxis.of(np.array([0.0, 100.0]), last=100.0)
    assert axis.edges.tolist() == [-5, 50, 105]


def test_the_overview_shows_the_fisher_blocks_and_one_layer_as_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setitem(overview.__globals__, "save", lambda figure, *_: drawn.append(figure))
    blocks = write_run(tmp_path / "blocks", matrices=WITH_BLOCKS)
    overview([open_run(blocks)], tmp_path)
    assert "Fisher block" in [axes.get_title(loc="left") for axes in drawn[0].axes]
    single = write_run(tmp_path / "single", layers=LAYERS[:1])
    overview([open_run(single)], tmp_path)
    panels = drawn[1].axes[:6]
    assert all(axes.lines and axes.get_yscale() == "log" for axes in panels[:2])
    assert not any(
        collection.get_array() is not None for axes in panels for collection in axes.collections
    )


@pytest.mark.parametrize(
    ("steps", "logarithmic"),
    [
        ([0, 10, 20, 30, 40], False),
        ([0, 13, 27, 41, 55, 69, 83], False),  # every epoch, and the start
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 209], True),
        ([7], False),
        ([], False),
    ],
)
def test_the_axis_suits_the_schedule(steps: list[int], logarithmic: bool) -> None:
    axis = StepAxis.of(np.array(steps, dtype=float), last=210.0)
    assert axis.logarithmic is logarithmic
    assert len(axis.edges) == (len(steps) + 1 if steps else 0)
    assert (np.diff(axis.edges) > 0).all()
    for step, left, right in zip(steps, axis.edges, axis.edges[1:], strict=False):
        assert left < step < right
    with style():
        axes = new_figure(3, 2).subplots()
        axis.apply(axes)
        axes.figure.canvas.draw()
    low, high = axes.get_xlim()
    assert low <= 0
    assert high >= 210
