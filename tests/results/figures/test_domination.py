"""The figure of claim 3: curves by factor, and where the weights were divided by it again."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from condexp.results.figures.domination import domination
from condexp.results.figures.style import EXTENSIONS, Size
from condexp.store.reader import Run, open_run
from tests.results.figures.drawing import check_same_bytes_in_any_order
from tests.results.stored import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    return [
        open_run(
            write_run(
                root / f"{factor:g}-{seed}",
                seed=seed,
                trainer__rescale={"factor": factor, "release_epoch": 2},
            )
        )
        for factor in (1.0, 10.0, 100.0)
        for seed in (1, 2)
    ]


def test_the_same_runs_give_the_same_bytes_in_any_order(runs: list[Run], tmp_path: Path) -> None:
    check_same_bytes_in_any_order("domination", runs, tmp_path)


def test_no_line_leads_across_the_release_but_the_loss(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setitem(domination.__globals__, "save", lambda figure, *_: drawn.append(figure))
    domination(runs, tmp_path, size=Size.TEXT)
    loss, median, _ = drawn[0].axes
    steps = [np.asarray(line.get_xdata()).tolist() for line in loss.lines]
    assert steps == [[2, 4, 6]] * 3 + [[4, 4]]
    steps = [np.asarray(line.get_xdata()).tolist() for line in median.lines]
    assert steps == [[0, 1, 2], [5]] * 3 + [[4, 4]]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == [rf"$\alpha = {factor}$" for factor in (1, 10, 100)] + [
        r"release: weights $/\,\alpha$",
        "range over seeds",
    ]


def test_runs_that_are_never_released_have_no_mark(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    assert len(domination([run], tmp_path, size=Size.COLUMN)) == len(EXTENSIONS)
