"""Indices of letters: κ_p and d_in of the Markdown have subscripts on the site."""

import re

from docutils import nodes
from sphinx.application import Sphinx

INDEX = re.compile(
    r"(?<=[α-ωΑ-Ω‖])_(?:\{(?P<of_greek>[^}]*)\}|(?P<greek>∇h|\d+\.\d+|\w+))"
    r"|(?<=\b[^\W\d_])_(?:\{(?P<of_letter>[^}]*)\}|(?P<letter>[^\W\d_]{1,3})\b)"  # no x_train
)
UNTOUCHED = (nodes.literal, nodes.literal_block, nodes.FixedTextElement, nodes.math)


def _lower(_app: Sphinx, doctree: nodes.document) -> None:
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, UNTOUCHED):
            continue
        pieces: list[nodes.Node] = []
        end = 0
        for found in INDEX.finditer(text):
            index = next(group for group in found.groups() if group is not None)
            pieces += [nodes.Text(text[end : found.start()]), nodes.subscript("", index)]
            end = found.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text[end:])])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transformation.

    Args:
        app: Sphinx.

    Returns:
        That pages may be read and written in parallel.
    """
    app.connect("doctree-read", _lower, priority=100)  # before the titles are collected
    return {"parallel_read_safe": True, "parallel_write_safe": True}
