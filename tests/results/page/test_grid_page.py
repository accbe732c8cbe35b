"""The page of a sweep: a row a run that leads to it, means over seeds, curves by condition."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlparse

import pytest
from playwright.sync_api import Browser

from condexp.results.collect import collect
from condexp.results.page.write import write_grid_page, write_run_page
from condexp.results.tables.table import make_table
from condexp.store.hdf5.structure import StructuredArray
from condexp.store.run_folder.status import State
from tests.conftest import Command
from tests.results.page.looking import column_texts, fits, opened
from tests.results.stored import write_early_failure, write_run

HOSTILE = "<img src=x onerror='alert(1)'>"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two conditions and two seeds; a bound, a failure, a name that is HTML."""
    root = tmp_path_factory.mktemp("outputs") / "a grid#1?"
    for seed in (1, 2):
        for last_bn in (False, True):
            write_run(
                root / f"run {HOSTILE if seed == 2 and last_bn else ''}{seed}{last_bn}",
                seed=seed, model__last_bn=last_bn, test_errors=(50, 40, 10 * seed + last_bn),
                bounded=["fc"] if last_bn else [],
            )  # fmt: skip
    write_early_failure(root / "failed", HOSTILE)
    write_run_page(root / "run 1False")
    return root


def test_every_run_is_a_link_to_its_page_or_folder(browser: Browser, grid: Path) -> None:
    page_file = write_grid_page([grid])
    with opened(browser, page_file) as page:
        links = page.locator("#run-table a")
        assert links.count() == 5
        addresses = [str(links.nth(i).get_attribute("href")) for i in range(5)]
        assert not any(address.startswith(("/", "file:", "http")) for address in addresses)
        places = {
            Path(unquote(urlparse(urljoin(page_file.as_uri(), each)).path)) for each in addresses
        }
        folders = {folder for folder in grid.iterdir() if folder.is_dir()}
        own = grid / "run 1False"
        assert places == folders - {own} | {own / "report.html"}
        assert page.locator("img").count() == 0
    # Written elsewhere, the links go there from there.
    other = write_grid_page([grid], output=grid.parent / "deep" / "er" / "page.html")
    assert "../../a%20grid%231%3F/failed/" in other.read_text()


def test_numbers_means_and_curves_are_what_is_stored(browser: Browser, grid: Path) -> None:
    frame = collect(grid)
    table = make_table(frame, ["model.last_bn"], [], "test_error")
    with opened(browser, write_grid_page([grid])) as page:
        text = page.inner_text("section[aria-labelledby=means]")
        for cell in table.cells.values():
            if not math.isnan(cell.mean):
                assert f"{cell.mean:.2f} ± {cell.std:.2f}" in text
        assert "1 failed" in text
        rows = column_texts(page, "#run-table tbody tr")
        (bound,) = [row for row in rows if row.startswith("run 1True")]
        assert "≥ 2" in bound
        assert "[2, ∞]" in bound
        (exact,) = [row for row in rows if row.startswith("run 1False")]
        assert "[2, 2]" in exact
        conditions = column_texts(page, "#conditions li")
        assert {"model.last_bn=false", "model.last_bn=true"} <= set(conditions)
        curves = "document.getElementById('plot-curves').data.map(t => [[...t.x], [...t.y]])"
        drawn = page.evaluate(curves)
        assert [[2, 4, 6], [50, 40, 10]] in drawn
        assert [[2, 4, 6], [50, 40, 15]] in drawn  # the mean of 10 and 20
        page.select_option("#value", "last_linear.input_kappa_0.5")
        assert [[0, 1, 2, 5], [2, 2, 2, 2]] in page.evaluate(curves)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_lies_beside_the_window(browser: Browser, grid: Path, width: int) -> None:
    with opened(browser, write_grid_page([grid]), viewport={"width": width, "height": 800}) as page:
        assert fits(page)


def test_one_folder_many_folders_and_where(grid: Path, tmp_path: Path, condexp: Command) -> None:
    runs = [str(grid / "run 1False"), str(grid / "run 1True")]
    page = tmp_path / "page.html"
    code, out, _ = condexp("report", *runs, "--output", str(page), "--where", "seed=1")
    assert (code, out) == (0, f"wrote {page}\n")
    assert page.read_text().count('class="name"><a') == 2
    code, out, err = condexp("report", str(grid), "--where", "seed=3")
    assert (code, out) == (2, "")
    assert "seed is 1, 2" in err
    code, _, err = condexp("report", *runs, "--format", "markdown")
    assert code == 2
    assert "--format html" in err


def test_a_damaged_run_is_said_and_the_others_shown(tmp_path: Path, condexp: Command) -> None:
    for seed in (1, 2):
        write_run(tmp_path / "grid" / f"run{seed}", seed=seed)
    (tmp_path / "grid" / "run2" / "results.h5").write_bytes(b"nothing")
    code, out, err = condexp("report", str(tmp_path / "grid"))
    assert code == 1
    assert "wrote" in out
    assert "run2" in err
    assert "run1" in (tmp_path / "grid" / "report.html").read_text()
    write_run(tmp_path / "going" / "run", state=State.RUNNING, steps_done=0)
    assert condexp("report", str(tmp_path / "going"))[0] == 0


def test_of_all_runs_but_one_only_what_is_shown_is_read(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[Path, set[str]] = defaultdict(set)
    plain = StructuredArray.__getitem__

    def noted(self: StructuredArray, *args: Any) -> Any:
        read[Path(self.file.filename)].add(self.name)
        return plain(self, *args)

    monkeypatch.setattr(StructuredArray, "__getitem__", noted)
    write_grid_page([grid], output=tmp_path / "p.html")
    (first,) = (file for file in read if "/layers/kfac_trace" in read[file])  # to see what there is
    others = read.keys() - {first}
    assert len(others) == 3
    measures = ("/layers/input_", "/layers/kfac_", "/layers/grad_", "/layers/weight", "/spectra")
    shown = {
        f"/layers/input_{name}" for name in ("kappa", "kappa_low", "kappa_high", "status", "rank")
    }
    for file in others:
        assert {name for name in read[file] if name.startswith(measures)} <= shown


def test_of_many_runs_some_of_each_condition_are_drawn(
    grid: Path, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condexp.results.page.grid_page.MOST_CURVES", 2)
    with opened(browser, write_grid_page([grid], output=tmp_path / "p.html")) as page:
        assert "Of 5 runs 2 are drawn" in page.inner_text("#thinned")
        assert len(column_texts(page, "#conditions li")) == 2
