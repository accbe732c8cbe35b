"""The page of a run that goes on reads itself anew, and what was chosen stays chosen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from condexp.results.page.render import REFRESH_SECONDS
from condexp.results.page.write import write_run_page
from condexp.store.disk import locked
from condexp.store.run_folder.status import State
from tests.results.page.looking import opened
from tests.results.stored import write_run


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run whose lock is held: it goes on."""
    folder = write_run(tmp_path / "run", state=State.RUNNING, steps_done=2, save_spectra=True)
    with locked(folder / "results.h5"):
        yield folder


def test_it_refreshes_and_keeps_what_was_chosen(
    held: Path, tmp_path: Path, browser: Browser
) -> None:
    page_file = write_run_page(held)
    later = write_run(tmp_path / "later", state=State.RUNNING, steps_done=3, save_spectra=True)
    with opened(browser, page_file, plots=False) as page:
        page.clock.install()
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        page.select_option("#matrix", "grad_output")
        page.select_option("#quantity", "trace")
        page.select_option("#layer", "1")
        assert page.inner_text("#step-text") == "1"
        assert f"every {REFRESH_SECONDS} s" in page.inner_text("#live")
        write_run_page(later, page_file)
        with page.expect_navigation():
            page.clock.run_for(1000 * REFRESH_SECONDS)
        page.wait_for_selector("html[data-ready=yes]")
        # It was at the last snapshot, and there it stays.
        assert page.inner_text("#step-text") == "2"
        chosen = [page.input_value(f"#{name}") for name in ("matrix", "quantity", "layer")]
        assert chosen == ["grad_output", "trace", "1"]
        assert page.locator("#live").count() == 0  # nobody writes that run
