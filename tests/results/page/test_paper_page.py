"""The page of the paper: the report's verdicts and tables, escaped, with its pictures in it."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from condexp.results.claims.verdict import Verdict
from condexp.results.page.write import write_paper_page
from condexp.results.report import read_paper
from tests.conftest import Command
from tests.results.page.looking import column_texts, fits, opened
from tests.results.stored import write_run

HOSTILE = "<script>alert(1)</script>"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6364f8"
    "cf500f0003860180cde3b5dc0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper")
    for seed in (1, 2):
        for last_bn in (False, True):
            run = write_run(
                root / "table1" / f"{seed}{last_bn}", seed=seed, model__name="resnet",
                model__last_bn=last_bn, test_errors=(90, 50, 10 + seed - 5 * last_bn),
            )  # fmt: skip
            (run / "provenance.json").write_text(json.dumps({"argv": [HOSTILE], "python": HOSTILE}))
    write_run(root / "table2" / HOSTILE.replace("/", "_"), model__name=HOSTILE)
    (root / "table1" / "last_layer.png").write_bytes(PNG)
    return root


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_verdicts_tables_pictures_and_what_is_missing(
    browser: Browser, root: Path, width: int, scheme: str
) -> None:
    paper = read_paper(root)
    viewport = {"width": width, "height": 800}
    page_file = write_paper_page(root)
    assert HOSTILE not in page_file.read_text()
    with opened(browser, page_file, plots=False, viewport=viewport, color_scheme=scheme) as page:
        said = column_texts(page, "section[aria-labelledby=verdicts] td:last-child")
        answers = [
            v.answer if isinstance(v, Verdict) else "cannot be said"
            for v in paper.verdicts.values()
        ]
        assert said == answers
        text = page.inner_text("body")
        found = paper.verdicts["last_layer"]
        assert isinstance(found, Verdict)
        assert f"Claim 5: {found.statement}" in text
        for remark in found.remarks:
            assert remark in text
        assert "6.50 ± 0.71" in text
        assert "-5.00 [-5.00, -5.00]" in text
        assert "fig_stability: " in text
        assert HOSTILE in text
        (picture,) = page.locator("img").all()
        assert picture.evaluate("image => image.naturalWidth") == 1
        assert fits(page)
        page.click("#theme")
        assert page.inner_text("#theme") == "Theme: light"


def test_the_command_writes_html_where_it_is_asked_for(
    root: Path, tmp_path: Path, condexp: Command
) -> None:
    page = tmp_path / "page.html"
    assert condexp("report", str(root), "--output", str(page))[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    code, out, _ = condexp("report", str(root), "--format", "html")
    assert (code, out) == (0, f"wrote {root / 'report.html'}\n")
    code, out, _ = condexp("report", str(root))
    assert (code, out) == (0, f"wrote {root / 'REPORT.md'}\n")
