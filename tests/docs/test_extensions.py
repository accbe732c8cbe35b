"""What the site makes of Markdown: indices, links, and nothing that is loaded from a network."""

from typing import Any

import pytest

from docs.extensions.offline import LOADS
from docs.extensions.project_links import _of_included, _titles
from docs.extensions.subscripts import INDEX

NOBODY: Any = None


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("κ_p of Σ_x ⊗ Σ_∇h, κ_0.5.", ["_p", "_x", "_∇h", "_0.5"]),
        ("d_in·d_out, Σ_{n,t} a_{n,t}, ‖W‖_F", ["_in", "_out", "_{n,t}", "_{n,t}", "_F"]),
        ("x_train, fig_stability, input_kappa", []),
    ],
)
def test_indices(text: str, indices: list[str]) -> None:
    assert [found.group() for found in INDEX.finditer(text)] == indices


def test_links_of_included_files_and_of_files_by_name() -> None:
    content = ["[Start](docs/start.md) [changes](CHANGELOG.md) [cite](CITATION.cff)"]
    _of_included(NOBODY, NOBODY, "index", content)
    assert content == ["[Start](start.md) [changes](changelog.md) [cite](../CITATION.cff)"]
    content = ["[runs.md](runs.md#exit-codes) [runs](runs.md)"]
    _titles(NOBODY, "sweeps", content)
    assert content == ["[](runs.md#exit-codes) [runs](runs.md)"]


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/a.js">',
        '<link rel="stylesheet" href="//cdn.example/a.css" />',
        '<img alt="a" src="http://example.org/a.png">',
    ],
)
def test_what_would_be_loaded_is_found(tag: str) -> None:
    assert LOADS.findall(tag)
    assert not LOADS.findall('<a href="https://example.org"><img src="_images/a.png"></a>')
