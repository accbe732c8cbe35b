"""The page of a run in a browser: its controls are used, and what it shows is what is stored."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.vocabulary import Matrix
from condexp.cli.main import main
from condexp.results.layer_measures import LayerMeasures
from condexp.results.page.write import write_run_page
from condexp.results.run_view import worst_first
from condexp.results.tables.numbers import format_number
from condexp.store.reader import Run, open_run
from condexp.store.run_folder.status import State, Status, write_status
from tests.conftest import Command
from tests.in_process import run as run_here
from tests.results.page.looking import column_texts, fits, opened
from tests.results.stored import LAYERS, write_run

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    *("model.depth=3", "model.width=8", "trainer.steps=6", "dataset.subset.train=128"),
    *("trainer.batch_size=32", "analysis.schedule.every_steps=2"),
)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;{{ 7*7 }}'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = run_here(tmp_path_factory.mktemp("runs"), *SMALL).folder
    assert folder is not None
    return open_run(folder)


@pytest.fixture(scope="module")
def page_file(run: Run) -> Path:
    return write_run_page(run.path)


def written(data: LayerMeasures, name: str, row: int, layer: int) -> str:
    return format_number(data.values(name)[row, layer], data.marks(name)[row, layer])


def numbers(page: Page) -> dict[str, tuple[str, str]]:
    """What the table of one layer says: measure, value, interval."""
    names = [text.partition("\n")[0].strip() for text in column_texts(page, "#numbers tbody th")]
    cells = column_texts(page, "#numbers tbody td")
    return dict(zip(names, zip(cells[::2], cells[1::2], strict=True), strict=True))


def test_every_measure_of_every_matrix_is_what_is_stored(
    browser: Browser, run: Run, page_file: Path
) -> None:
    data = LayerMeasures.read(run)
    layers, last = len(data.layers), len(data.steps) - 1
    with opened(browser, page_file) as page:
        page.select_option("#layer", str(layers - 1))
        for matrix in data.matrices:
            page.select_option("#matrix", matrix)
            for suffix in ("lambda_max", "rank", "trace"):
                page.select_option("#quantity", suffix)
                said = page.locator("#readout").inner_text()
                assert f"= {written(data, f'{matrix}_{suffix}', last, layers - 1)}" in said
                assert page.locator("#p").is_disabled()
            page.select_option("#quantity", "kappa")
            for p in data.fractions:
                page.select_option("#p", f"{p:g}")
                name = f"{matrix}_kappa_{p}"
                said = page.locator("#readout").inner_text()
                assert f"= {written(data, name, last, layers - 1)} " in f"{said} "
                low, high = (end[last, layers - 1] for end in data.interval(name))
                assert numbers(page)[f"κ_{p:g}"] == (
                    written(data, name, last, layers - 1),
                    f"[{format_number(low)}, {format_number(high)}]"
                    if np.isfinite(data.values(name)[last, layers - 1]) else "",
                )  # fmt: skip
                drawn = page.evaluate("document.getElementById('plot-map').data[0].z")
                plain = np.array(drawn, dtype=float).T
                stored = np.log10(data.values(name))
                has_number = np.isin(data.marks(name), ["", "≥"])
                assert (np.isfinite(plain) == has_number).all()
                # Twenty bits of mantissa are kept.
                np.testing.assert_allclose(plain[has_number], stored[has_number], atol=3e-7)


def test_the_layer_and_the_slider_show_its_spectrum(
    browser: Browser, run: Run, page_file: Path
) -> None:
    data = LayerMeasures.read(run)
    with opened(browser, page_file) as page:
        page.select_option("#matrix", "input")
        for layer in (0, len(data.layers) - 1):
            page.select_option("#layer", str(layer))
            for row, step in enumerate(data.steps):
                page.locator("#step").fill(str(row))
                assert page.locator("#step-text").inner_text() == str(step)
                stored = run.spectrum("input", data.layers[layer]).to_numpy()[row]
                traces = page.evaluate(
                    "document.getElementById('plot-spectrum').data.map(t => [...t.y])"
                )
                shown = np.array([v or 0 for v in traces[0]])
                np.testing.assert_allclose(shown, np.maximum(stored, 0), rtol=1e-6)
                floor = data.arrays["input_noise_floor"][row, layer]
                np.testing.assert_allclose(traces[1], floor, rtol=1e-6)
                assert f"noise floor {format_number(floor)}" in page.inner_text("#spectrum-text")
        page.select_option("#matrix", "kfac")  # its two factors
        traces = page.evaluate("document.getElementById('plot-spectrum').data.map(t => t.name)")
        assert [name.partition(",")[0] for name in traces] == ["Σx", "Σx", "Σ∇h", "Σ∇h"]


def test_the_keyboard_does_what_the_mouse_does(browser: Browser, run: Run, page_file: Path) -> None:
    layers = len(run.layers)
    with opened(browser, page_file) as page:
        page.select_option("#layer", "0")
        page.focus("#plot-map")
        for _ in range(layers + 2):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowLeft")
        assert page.input_value("#layer") == str(layers - 1)
        assert page.inner_text("#step-text") == str(run.steps[-2])
        page.focus("#step")
        page.keyboard.press("Home")
        assert page.inner_text("#step-text") == str(run.steps[0])
        reached = set()
        page.evaluate("document.activeElement.blur()")
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"theme", "matrix", "quantity", "p", "plot-map", "layer", "step"} <= reached
        labels = page.evaluate(
            "[...document.querySelectorAll('select, input')].map(c => c.labels.length > 0)"
        )
        assert all(labels)


def test_the_theme_is_the_systems_until_it_is_chosen(browser: Browser, page_file: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, page_file, color_scheme="light") as page:
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(ground)
        assert light != dark
        page.focus("#theme")
        page.keyboard.press("Enter")
        assert page.inner_text("#theme") == "Theme: light"
        assert page.evaluate(ground) == light
        page.keyboard.press("Enter")
        page.emulate_media(color_scheme="light")
        assert page.evaluate(ground) == dark
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert page.evaluate(ground) == dark


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_lies_beside_the_window(browser: Browser, page_file: Path, width: int) -> None:
    with opened(browser, page_file, viewport={"width": width, "height": 800}) as page:
        assert fits(page)


def test_what_stands_in_it_without_a_script(run: Run, page_file: Path, browser: Browser) -> None:
    data = LayerMeasures.read(run)
    sort, order = worst_first(data)
    assert sort == "kfac_kappa_0.5"
    with opened(browser, page_file, plots=False, java_script_enabled=False) as page:
        assert column_texts(page, "section[aria-labelledby=worst] tbody th") == [
            data.layers[layer] for layer in order
        ]
        text = page.inner_text("body")
    for words in ("lr=0.1", "gradient residual", "Not analysed: ", "condexp", "torch", "κp = λ1"):
        assert words in text
    for layer in order:
        assert format_number(data.values(sort)[-1, layer]) in text
    assert f"{100 * data.arrays['coverage_parameters'][-1]:.3g} %" in text


def test_the_same_run_gives_the_same_page_without_torch(run: Run, tmp_path: Path) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    write_run_page(run.path, pages[0])
    code = f"""
import sys
from condexp.analysis.vocabulary import Matrix
from condexp.cli.main import main
assert main(["report", {str(run.path)!r}, "--output", {str(pages[1])!r}]) == 0
assert not {{"torch", "matplotlib", "plotly"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_foreign_texts_are_texts(browser: Browser, tmp_path: Path) -> None:
    layers = [
        LayerInfo(f"{HOSTILE}{i}", HOSTILE, d_in=4, d_out=3, groups=1, positions=1, uses=1)
        for i in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.results.stored.LAYERS", tuple(layers))
        folder = write_run(
            tmp_path / "run", layers=layers, save_spectra=True, model__name=HOSTILE,
            optimizer__name="<b>adam</b>", matrices=(Matrix.INPUT, Matrix.GRAD_OUTPUT, Matrix.KFAC),
        )  # fmt: skip
    write_status(folder, Status(State.FAILED, step=6, num_steps=6, error=HOSTILE))
    (folder / "provenance.json").write_text(json.dumps({"argv": [HOSTILE], "python": HOSTILE}))
    page_file = write_run_page(folder)
    text = page_file.read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    with opened(browser, page_file) as page:
        assert page.locator("img, b").count() == 0
        assert f"{HOSTILE}0" in column_texts(page, "#layer option")
        assert HOSTILE in page.inner_text("header")
        assert HOSTILE in page.inner_text("#numbers caption")
        assert page.evaluate("document.getElementById('plot-map').layout.yaxis.ticktext[0]")
        assert page.locator("#plot-map a").count() == 0


def test_what_is_no_number_says_why(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", bounded=["fc"], save_spectra=True)
    with opened(browser, write_run_page(folder)) as page:
        page.select_option("#matrix", "input")
        page.select_option("#quantity", "kappa")
        page.select_option("#p", "1")
        kinds = " ".join(column_texts(page, "#kinds li"))
        assert "4 cells: ≥: the eigenvalue cannot be told from 0" in kinds
        assert "4 cells: rows: infinite by construction" in kinds
        assert "4 cells: ∞: the matrix is rank-deficient" in kinds
        for status in ("zero", "unreliable", "nonfinite"):
            assert f"cells: {status}: " in kinds
        page.select_option("#layer", str([info.name for info in LAYERS].index("fc")))
        assert numbers(page)["κ_1"] == ("≥ 8", "[8, ∞]")
        bounds = page.evaluate("document.getElementById('plot-map').data[2].y")
        assert bounds == [3, 3, 3, 3]


def test_a_run_without_snapshots_or_layers(browser: Browser, tmp_path: Path) -> None:
    for name, options in {
        "begun": {"steps_done": 0},
        "bare": {"layers": (), "snapshot_steps": ()},
    }.items():
        folder = write_run(tmp_path / name, **options)  # type: ignore[arg-type]
        with opened(browser, write_run_page(folder)) as page:
            assert re.search("No snapshot yet|No layer was analysed", page.inner_text("#content"))


def test_no_spectra_and_one_layer(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", layers=LAYERS[3:], snapshot_steps=(0,))
    with opened(browser, write_run_page(folder)) as page:
        assert "analysis.save_spectra=true" in page.inner_text("#plot-spectrum")
        assert numbers(page)["λ_max"][0]


def test_damage_and_bad_arguments_are_one_line(
    run: Run, tmp_path: Path, condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.h5").write_bytes(b"nothing")
    code, out, err = condexp("report", str(tmp_path / "bad"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is damaged" in err or "not an HDF5 file" in err
    assert not (tmp_path / "bad" / "report.html").exists()
    (tmp_path / "taken").mkdir()
    code, _, err = condexp("report", str(run.path), "--output", str(tmp_path / "taken"))
    assert (code, err.count("\n")) == (2, 1)
    assert "no regular file" in err
    for args, message in (
        (("--format", "htm"), "Did you mean 'html'?"),
        (("--format", "markdown"), "--format html"),
        (("--output", "x.md"), "--format html"),
        (("--where", "seed=1"), "leave it out"),
        (("--watch", "--format", "markdown"), "--watch is for the HTML page of one run"),
    ):
        code, out, err = condexp("report", str(run.path), *args)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    monkeypatch.setattr("condexp.results.page.render.find_spec", lambda name: None)
    assert main(["report", str(run.path)]) == 2


def test_what_it_is_made_with_is_named_where_it_is_missing(
    run: Run, condexp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condexp.results.page.render.find_spec", lambda name: None)
    code, _, err = condexp("report", str(run.path))
    assert code == 2
    assert "needs plotly and jinja2: pip install 'condexp[report]'" in err
