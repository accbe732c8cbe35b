"""Links of the Markdown pages, where the site wants other ones.

README, CONTRIBUTING and CHANGELOG are included by pages, and their links start elsewhere. A link
whose text is a file's name has the page's title as its text.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

PLACES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "../CITATION.cff",
}


def _of_included(_app: Sphinx, _path: Path, _docname: str, content: list[str]) -> None:
    text = content[0].replace("](docs/", "](")
    for file, place in PLACES.items():
        text = text.replace(f"]({file}", f"]({place}")
    content[0] = text


def _titles(_app: Sphinx, _docname: str, content: list[str]) -> None:
    content[0] = re.sub(r"\[[\w-]+\.md\]\(", "[](", content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrite links as pages are read.

    Args:
        app: Sphinx.

    Returns:
        That pages may be read and written in parallel.
    """
    app.connect("include-read", _of_included)
    app.connect("source-read", _titles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
