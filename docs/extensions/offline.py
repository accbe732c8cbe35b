"""Pages load nothing from a network: one that would is an error of the build."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

LOADS = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*"
)
LOGGER = getLogger(__name__)


def _look(app: Sphinx, _error: Exception | None) -> None:
    for page in Path(app.outdir).rglob("*.html"):
        for found in LOADS.findall(page.read_text()):
            LOGGER.warning("%s loads from a network: %s", page.name, found)


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at the pages when they are written.

    Args:
        app: Sphinx.

    Returns:
        That pages may be read and written in parallel.
    """
    app.connect("build-finished", _look)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
