"""The Hessian and the Gauss–Newton matrix on the page of a run, by the same controls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from condexp.results.figures.density import WIDTH, _smoothed
from condexp.results.layer_measures import LayerMeasures
from condexp.results.page.write import write_run_page
from condexp.results.sharpness import sharpness_table
from condexp.results.tables.numbers import format_number
from condexp.store.reader import Run, open_run
from tests.in_process import run as run_here
from tests.results.page.looking import column_texts, fits, opened

TINY = (
    *("model.depth=2", "model.width=6", "trainer.steps=4", "dataset.subset.train=64"),
    *("trainer.batch_size=32", "analysis.schedule.every_steps=2", "analysis.top_k=3"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = run_here(
        tmp_path_factory.mktemp("runs"), *TINY, "analysis.matrices=[input,fisher,hessian,ggn]"
    ).folder
    assert folder is not None
    return open_run(folder)


@pytest.fixture(scope="module")
def page_file(run: Run) -> Path:
    return write_run_page(run.path)


def trace(page: Page, name: str) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        f"(({{x, y, error_y}}) => ({{x: [...x], y: [...y], e: error_y && [...error_y.array]}}))"
        f"(document.getElementById('plot-{name}').data[0])"
    )
    return found


def test_every_number_of_every_row_is_what_is_stored(
    browser: Browser, run: Run, page_file: Path
) -> None:
    data, network = LayerMeasures.read(run), LayerMeasures.read_network(run)
    num = len(data.layers)
    parts = [(data, layer) for layer in range(num)] + [(network, 0)]
    with opened(browser, page_file) as page:
        for matrix in ("hessian", "ggn"):
            page.select_option("#matrix", matrix)
            for row, (part, place) in enumerate(parts):
                page.select_option("#layer", str(row))
                for measure in ("lambda_max", "lambda_min", "trace", "negative_share"):
                    page.select_option("#quantity", measure)
                    value, error = (
                        format_number(part.values(f"{matrix}_{measure}{end}")[-1, place])
                        for end in ("", "_error")
                    )
                    assert f"= {value} ± {error}" in page.inner_text("#readout")
        assert column_texts(page, "#layer option") == [*data.layers, "the network"]
        # Of the map, the rows are these, and the network's is the last.
        page.select_option("#quantity", "negative_share")
        drawn = np.array(page.evaluate("document.getElementById('plot-map').data[0].z"))
        stored = [part.values("ggn_negative_share")[:, place] for part, place in parts]
        np.testing.assert_allclose(drawn, stored, atol=1e-6)
        # What is not of the network has no such row.
        page.select_option("#matrix", "input")
        assert column_texts(page, "#layer option") == list(data.layers)
        page.select_option("#matrix", "fisher")
        page.select_option("#layer", str(num))
        spectrum = np.array([value or 0.0 for value in trace(page, "spectrum")["y"]])
        np.testing.assert_allclose(spectrum, network.arrays["fisher_eigenvalue"][-1, 0], rtol=1e-6)


def test_the_slider_shows_eigenvalues_and_density(
    browser: Browser, run: Run, page_file: Path
) -> None:
    table, network = run.measures(), run.network()
    points = network["point"].to_numpy()
    with opened(browser, page_file) as page:
        page.select_option("#matrix", "hessian")
        for row, layer in ((0, table.isel(layer=0)), (len(run.layers), network)):
            page.select_option("#layer", str(row))
            for step in range(len(run.steps)):
                page.locator("#step").fill(str(step))
                shown = trace(page, "spectrum")
                for key, name in (("y", "eigenvalue"), ("e", "eigenvalue_error")):
                    stored = layer[f"hessian_{name}"].to_numpy()[step]
                    np.testing.assert_allclose(shown[key], stored, rtol=1e-6)
                scale = float(layer["hessian_density_scale"][step])
                masses = layer["hessian_density"].to_numpy()[step]
                at, height = _smoothed(points * scale, masses, WIDTH * scale)
                curve = trace(page, "density")
                drawn = np.array([np.nan if y is None else y for y in curve["y"]])
                seen = np.isfinite(drawn)
                expected = np.interp(np.array(curve["x"])[seen], at, height)
                # The picture's 1024 places are joined by straight lines here.
                np.testing.assert_allclose(drawn[seen], expected, rtol=2e-2)
        page.select_option("#matrix", "input")
        assert not page.locator("#density").is_visible()


def test_the_sharpness_and_its_edge(browser: Browser, run: Run, page_file: Path) -> None:
    table = sharpness_table(run)
    with opened(browser, page_file) as page:
        curves = page.evaluate(
            "document.getElementById('plot-sharpness').data.slice(2).map(t => [t.name, [...t.y]])"
        )
    assert [name for name, _ in curves] == ["λ<sub>max</sub>", "2/lr"]
    for (_, drawn), name in zip(curves, ("lambda_max", "edge"), strict=True):
        np.testing.assert_allclose(drawn, table[name], rtol=1e-5)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_nothing_lies_beside_the_window(
    browser: Browser, page_file: Path, width: int, scheme: str
) -> None:
    viewport = {"width": width, "height": 800}
    with opened(browser, page_file, viewport=viewport, color_scheme=scheme) as page:
        page.select_option("#matrix", "hessian")
        assert fits(page)
        text = page.inner_text("#content")
    for words in ("network: hessian λ_max = ", "network: ggn λ_max = ", "spectra of Hessian"):
        assert words in text


def test_the_network_alone(browser: Browser, tmp_path: Path) -> None:
    options = ("analysis.matrices=[hessian]", "analysis.layer_blocks=false")
    folder = run_here(tmp_path, *TINY, *options).folder
    assert folder is not None
    with opened(browser, write_run_page(folder)) as page:
        assert column_texts(page, "#layer option") == ["the network"]
        assert "the network, step 3: λ_max of Hessian = " in page.inner_text("#readout")
        assert "No condition number was measured" in page.inner_text("#content")


def test_of_a_large_run_some_rows_and_snapshots_are_kept(
    run: Run, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condexp.results.page.curvature_data.VALUES", 4000)
    monkeypatch.setattr("condexp.results.page.curvature_data.LEAST_SNAPSHOTS", 2)
    with opened(browser, write_run_page(run.path, tmp_path / "page.html")) as page:
        assert (
            f"of hessian and ggn are kept of 2 of {len(run.layers) + 1} rows, at 2 of "
            f"{len(run.steps)} snapshots" in page.inner_text("#thinned")
        )
        page.select_option("#matrix", "hessian")
        page.select_option("#layer", str(len(run.layers)))
        page.locator("#step").fill("1")
        assert f"kept at step {run.steps[0]}" in page.inner_text("#spectrum-text")
        kept = page.evaluate("DATA.curvature.rows")
        (missing,) = {*range(len(run.layers) + 1)} - {*kept}
        page.select_option("#layer", str(missing))
        assert "No eigenvalues of this matrix of this layer" in page.inner_text("#plot-spectrum")
