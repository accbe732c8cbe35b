"""The picture of normalisations: every layer is in it, also one measured with few rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from condexp.cli.main import main
from condexp.results.figures import find_figure
from condexp.results.figures.style import Size
from condexp.store.reader import open_run
from tests.results.stored import LAYERS, write_run


def test_the_default_batch_is_drawn_hollow_and_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At batch 128 every layer of the default network has fewer than four rows a unit."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-m", "model.norm=none,batch", "seed=1,2", "trainer.steps=12"]) == 0
    figures: list[Figure] = []
    draw = find_figure("conditioning")

    def keep(figure: Figure, *_: object) -> tuple[Path, ...]:
        figures.append(figure)
        return ()

    monkeypatch.setitem(draw.__globals__, "save", keep)  # type: ignore[attr-defined]
    assert main(["figure", "conditioning", "outputs/default"]) == 0
    axes, (legend,) = figures[0].axes[0], figures[0].legends
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [np.size(line.get_xdata()) for line in hollow] == [6, 6]  # norms
    assert [text.get_text() for text in axes.get_xticklabels()][-1] == "fc"
    assert "few rows: κ of the sample" in [text.get_text() for text in legend.get_texts()]
    assert "analysis.source=probe" in legend.get_title().get_text()


def test_what_is_infinite_for_want_of_rows_is_at_the_top(tmp_path: Path) -> None:
    runs = [
        open_run(write_run(tmp_path / norm, model__norm=norm, layers=LAYERS[:2]))
        for norm in ("none", "batch")
    ]
    *_, table = find_figure("conditioning")(runs, tmp_path, size=Size.TEXT)
    rows = pd.read_csv(table)
    assert not rows["enough_rows"].all()
    assert len(rows) == 4  # layers that were left out once are in it


def test_an_empty_picture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "none", model__norm="none", layers=LAYERS[2:3])  # it is dead
    assert main(["figure", "conditioning", str(tmp_path / "runs"), "--output", str(tmp_path)]) == 2
    assert "conditioning: there is nothing to draw" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
