"""Figures by their names: which runs, how wide, where to."""

from pathlib import Path

import pytest
from matplotlib.image import imread

from condexp.cli.main import main
from condexp.errors import InputError
from condexp.results.figures import NAMES, find_figure
from condexp.results.figures.draw import draw
from condexp.results.figures.style import EXTENSIONS
from condexp.results.select import common_folder
from tests.results.stored import write_early_failure, write_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs") / "grid"
    for seed in (1, 2):
        write_run(root / f"run{seed}", seed=seed, trainer__rescale={"factor": 1.0})
    write_early_failure(root / "failed")
    return root


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_the_command_line_knows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["figure", "--help"])
    assert f"one of {', '.join(NAMES)}" in " ".join(capsys.readouterr().out.split())
    assert all(callable(find_figure(name)) for name in NAMES)


def test_a_figure_of_many_runs_lies_beside_them(
    grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figure", "domination", str(grid)]) == 0
    assert {f"domination.{extension}" for extension in EXTENSIONS} <= names(grid)
    said = capsys.readouterr().out
    assert f"wrote {grid / 'domination.png'}" in said
    assert f"left out, as it has no number to draw: {grid / 'failed'}" in said


def test_conditions_size_and_folder(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--where", "seed=2", "model.depth=3", "--output", str(tmp_path), "--size", "column"]
    assert main(["figure", "domination", str(grid), *given]) == 0
    assert "left out" not in capsys.readouterr().out
    seeds = {line.split(",")[2] for line in (tmp_path / "domination.csv").read_text().splitlines()}
    assert seeds == {"seed", "2"}
    assert main(["figure", "domination", str(grid), "--size", "page"]) == 2
    assert "unknown size 'page': allowed are column, text" in capsys.readouterr().err
    assert main(["figure", "dominaton", str(grid)]) == 2
    assert "Did you mean 'domination'?" in capsys.readouterr().err


def test_an_overview_is_of_each_run_by_itself(grid: Path, tmp_path: Path) -> None:
    where = [grid / "run1", grid / "run2"]
    drawn = draw("overview", where, output=tmp_path)
    assert [path.parent.name for path in drawn.files] == ["run1"] * 4 + ["run2"] * 4
    beside = draw("overview", where[:1], size="column").files
    assert {path.parent for path in beside} == {where[0]}
    assert imread(beside[1]).shape[1] == round(3.3 * 220)


def test_no_run_with_a_snapshot(grid: Path) -> None:
    with pytest.raises(
        InputError, match=r"none of 1 runs has a snapshot to draw: .* analysis=none"
    ):
        draw("stability", [grid / "failed"])


def test_the_folder_that_holds_them_all(grid: Path) -> None:
    assert common_folder([grid]) == grid
    assert common_folder([grid / "run1", grid / "run2"]) == grid
    assert common_folder([grid / "run1" / "results.h5"]) == grid / "run1"
