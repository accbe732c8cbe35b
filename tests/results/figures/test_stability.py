"""The figure of claim 2: a panel a norm, a cell an initialization and learning rate."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from condexp.results.figures.stability import _share_scale, stability
from condexp.results.figures.style import EXTENSIONS, Size, new_figure
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.status import State
from tests.results.figures.drawing import check_same_bytes_in_any_order
from tests.results.stored import LAYERS, write_run

LOST: dict[str, Any] = {"state": State.DIVERGED, "steps_done": 3, "diverges_at": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two inits, two learning rates, two seeds; plain nets diverge at the higher rate."""
    root = tmp_path_factory.mktemp("runs")
    return [
        open_run(
            write_run(
                root / f"{norm}-{init}-{lr:g}-{seed}",
                layers=LAYERS[1:2],
                model__norm=norm,
                model__init=init,
                optimizer__lr=lr,
                seed=seed,
                **(LOST if lost else {}),
            )
        )
        for norm in ("none", "batch")
        for init in ("he", "lecun")
        for lr in (0.1, 1.0)
        for seed in (1, 2)
        for lost in [norm == "none" and lr == 1 and seed == 2]
    ]


def test_the_same_runs_give_the_same_bytes_in_any_order(runs: list[Run], tmp_path: Path) -> None:
    check_same_bytes_in_any_order("stability", runs, tmp_path)


def test_cells_say_what_became_of_the_runs(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setitem(stability.__globals__, "save", lambda figure, *_: drawn.append(figure))
    stability(runs, tmp_path, size=Size.TEXT)
    curves, cells, (bar,) = drawn[0].axes[:2], drawn[0].axes[2:4], drawn[0].axes[4:]
    assert "lambda" in bar.get_ylabel()
    assert [axes.get_title() for axes in curves] == ["no normalization", "BatchNorm"]
    assert curves[0].get_ylim() == curves[1].get_ylim()
    plain, normalized = ([text.get_text() for text in axes.texts] for axes in cells)
    # λ_max = 4^(1 - step) at step 5: log₁₀ is -2.4. The plain net that diverged has none there.
    assert plain == ["−2.4\n2/2", "−2.4\n1/2 ×"] * 2
    assert normalized == ["−2.4\n2/2"] * 4
    assert [label.get_text() for label in cells[0].get_yticklabels()] == ["he", "lecun"]


def test_cells_without_runs_stay_empty(runs: list[Run], tmp_path: Path) -> None:
    some = [run for run in runs if "none-lecun-1" not in run.path.name]
    assert len(some) == len(runs) - 2
    assert len(stability(some, tmp_path, size=Size.COLUMN)) == len(EXTENSIONS)
    assert len(stability(runs[:1], tmp_path, size=Size.COLUMN)) == len(EXTENSIONS)


def test_curves_that_the_common_scale_would_make_a_line_have_their_own() -> None:
    panels = new_figure(7, 2).subplots(1, 3)
    for axes, top in zip(panels, (1e6, 2.0, 1e4), strict=True):
        axes.set_title("x")
        axes.plot([0, 1], [1, top])
    _share_scale(panels)
    assert panels[0].get_ylim() == panels[2].get_ylim()
    assert panels[1].get_ylim()[1] < 3
    assert [axes.get_title() for axes in panels] == ["x", "x\n(a scale of its own)", "x"]
