"""Greek letters' indices: κ_p in the Markdown is κ with a subscript on the site."""

import re

from docutils import nodes
from sphinx.application import Sphinx

NAME = re.compile(r"(?<=[α-ωΑ-Ω])_(∇h|\d+\.\d+|\w+)")
UNTOUCHED = (nodes.literal, nodes.literal_block, nodes.FixedTextElement, nodes.math)


def _lower(_app: Sphinx, doctree: nodes.document) -> None:
    for text in list(doctree.findall(nodes.Text)):
        if not NAME.search(text) or isinstance(text.parent, UNTOUCHED):
            continue
        parts = NAME.split(text)
        pieces: list[nodes.Node] = []
        for number, part in enumerate(parts):
            lowered = number % 2 == 1
            pieces += [nodes.subscript("", part) if lowered else nodes.Text(part)]
        text.parent.replace(text, pieces)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transformation.

    Args:
        app: Sphinx.

    Returns:
        That pages may be read and written in parallel.
    """
    app.connect("doctree-read", _lower, priority=100)  # before the titles are collected
    return {"parallel_read_safe": True, "parallel_write_safe": True}
