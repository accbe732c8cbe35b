"""A page open in a browser, where nothing is asked of a network and nothing goes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Dialog, Page, Request

GUARD_MILLISECONDS = 300_000  # ends a test that hangs


@contextmanager
def opened(browser: Browser, path: Path, *, plots: bool = True, **options: Any) -> Iterator[Page]:
    """Open a page; at the end it has asked for nothing, and said nothing on its console."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    page = context.new_page()
    page.set_default_timeout(GUARD_MILLISECONDS)
    wrong: list[str] = []
    address = path.absolute().as_uri()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def refuse(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def note(request: Request) -> None:
        if request.url != address:
            wrong.append(request.url)

    page.on("dialog", refuse)
    page.on("request", note)
    try:
        page.goto(address)
        if plots:
            page.wait_for_selector("html[data-ready=yes]")
        yield page
        assert not wrong
    finally:
        context.close()


def fits(page: Page) -> bool:
    """Whether nothing of the page lies beside the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def column_texts(page: Page, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]
