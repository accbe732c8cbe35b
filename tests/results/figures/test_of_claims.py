"""The figures of claims 1, 4 and 5: they show what the claims are judged by."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import imread

from condexp.errors import InputError
from condexp.results import claims
from condexp.results.figures import NAMES, find_figure
from condexp.results.figures.style import EXTENSIONS, Size
from condexp.store.reader import Run, open_run
from tests.results.stored import WITH_BLOCKS, write_run

Grid = Callable[[Path], list[Run]]


def validation_grid(root: Path) -> list[Run]:
    return [
        open_run(write_run(root / f"{norm}{s}", matrices=WITH_BLOCKS, seed=s, model__norm=norm))
        for norm in ("none", "batch")
        for s in (1, 2)
    ]


def conditioning_grid(root: Path) -> list[Run]:
    return [
        open_run(write_run(root / f"{norm}{seed}", seed=seed, model__norm=norm))
        for norm in ("none", "batch", "center")
        for seed in (1, 2)
    ]


def last_layer_grid(root: Path) -> list[Run]:
    return [
        open_run(
            write_run(
                root / f"{last_bn}{seed}",
                save_spectra=True,
                seed=seed,
                model__name="resnet",
                model__last_bn=last_bn,
            )
        )
        for last_bn in (False, True)
        for seed in (1, 2)
    ]


GRIDS: dict[str, Grid] = {
    "validation": validation_grid,
    "conditioning": conditioning_grid,
    "last_layer": last_layer_grid,
}


@pytest.fixture(scope="module", params=GRIDS)
def drawn(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Run], tuple[Path, ...]]:
    root = tmp_path_factory.mktemp(request.param)
    runs = GRIDS[request.param](root / "runs")
    return request.param, runs, find_figure(request.param)(runs, root / "drawn", size=Size.COLUMN)


def test_four_files_the_same_from_the_same_runs(
    drawn: tuple[str, list[Run], Sequence[Path]], tmp_path: Path
) -> None:
    name, runs, paths = drawn
    assert [path.name for path in paths] == [f"{name}.{extension}" for extension in EXTENSIONS]
    assert imread(paths[1]).shape[1] == round(3.3 * 220)
    again = find_figure(name)(runs, tmp_path, size=Size.COLUMN)
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_text_is_wider(tmp_path: Path) -> None:
    runs = conditioning_grid(tmp_path / "runs")[:2]
    _, png, *_ = find_figure("conditioning")(runs, tmp_path, size=Size.TEXT)
    assert imread(png).shape[1] == round(7.2 * 220)


def test_the_csv_holds_what_the_verdict_is_from(
    drawn: tuple[str, list[Run], Sequence[Path]],
) -> None:
    name, runs, paths = drawn
    table, measured = pd.read_csv(paths[3]), claims.CLAIMS[name].measure(runs)
    if name == "validation":
        pd.testing.assert_frame_equal(table, measured, check_dtype=False)
    elif name == "conditioning":
        last = measured[measured["step"] == 5]
        np.testing.assert_array_equal(table["kappa"], last["kappa"])
        assert table["norm"].tolist() == last["norm"].tolist()
    else:
        curve = table[table["panel"] == "input_kappa_0.5"]
        assert len(curve) == len(measured)
        spectrum = table[(table["panel"] == "input_eigenvalue") & (table["step"] == 1)]
        # The first seed, plain and with LastBN: 4, 2, 1, 1/2.
        assert len(spectrum) == 2 * 4
        assert set(spectrum["seed"]) == {1}
        assert spectrum["value"].unique().tolist() == [4, 2, 1, 0.5]


def test_a_last_layer_without_spectra_names_the_option(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    with pytest.raises(InputError, match=r"analysis\.save_spectra=true"):
        find_figure("last_layer")([run], tmp_path, size=Size.TEXT)


@pytest.mark.parametrize(("size", "num_pages"), [(Size.COLUMN, 5), (Size.TEXT, 3)])
def test_networks_that_a_page_has_no_room_for_are_on_another(
    tmp_path: Path, size: Size, num_pages: int
) -> None:
    names = [f"net{number}" for number in range(5)]
    runs = [
        open_run(
            write_run(
                tmp_path / f"{name}{last_bn}",
                save_spectra=True,
                model__name=name,
                model__last_bn=last_bn,
            )
        )
        for name in names
        for last_bn in (False, True)
    ]
    paths = find_figure("last_layer")(runs, tmp_path, size=size)
    assert len(paths) == num_pages * len(EXTENSIONS)
    drawn: list[str] = []
    for number in range(num_pages):
        stem = f"last_layer-{number + 1}" if number else "last_layer"
        _, png, _, table = paths[4 * number : 4 * number + 4]
        assert png.name == f"{stem}.png"
        assert imread(png).shape[0] <= 9 * 220
        drawn += pd.read_csv(table)["condition"].str.partition(" on ")[0].unique().tolist()
    assert drawn == names


@pytest.mark.parametrize("name", GRIDS)
def test_lower_bounds_are_open_triangles_and_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A κ that is known from below only is no point like the others."""
    figures: list[Figure] = []
    draw = find_figure(name)

    def keep(figure: Figure, *_: object) -> tuple[Path, ...]:
        figures.append(figure)
        return ()

    monkeypatch.setitem(draw.__globals__, "save", keep)  # type: ignore[attr-defined]
    runs = [
        open_run(
            write_run(
                tmp_path / f"{number}",
                matrices=WITH_BLOCKS,
                save_spectra=True,
                bounded=["conv", "fc"],
                num_signals=9,
                seed=number,
                model__last_bn=number > 1,
                model__norm="batch" if number > 1 else "none",
            )
        )
        for number in (1, 2)
    ]
    draw(runs, tmp_path, size=Size.TEXT)
    legends = [legend for part in (figures[0], *_parts(figures[0])) for legend in part.legends]
    words = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert any(word.startswith("≥: a lower bound") for word in words)


def _parts(figure: FigureBase) -> list[FigureBase]:
    return [part for own in figure.subfigs for part in (own, *_parts(own))]


def test_every_claim_has_its_figure() -> None:
    assert set(claims.CLAIMS) == set(NAMES) - {
        "overview",
        "spectrum",
        "compare",
        "density",
        "sharpness",
        "closeness",
    }
    assert [claim.number for claim in claims.CLAIMS.values()] == [1, 2, 3, 4, 5]
