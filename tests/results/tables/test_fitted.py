"""Tables of any width; `test_formats` and `test_status_view` have those of the commands."""

import io
from collections.abc import Iterable

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from condexp.results.tables.fitted import LEAST_TEXT, Fitted

NAMES = ["fc", "layers.0.linear", "日本語", "a name\nof two lines", "[red]no markup[/red]", ""]


def table(names: Iterable[str], fold: str = "fold") -> Table:
    made = Table(box=SIMPLE_HEAD, pad_edge=False, title="title", caption="caption")
    made.add_column("layer", overflow=fold)  # type: ignore[arg-type]
    made.add_column("λ\nmax", justify="right")
    made.add_column("state")
    for number, name in enumerate(names):
        made.add_row(Text(name), f"{10**number}", Text("good", style="green"))
    return made


def printed(what: RenderableType, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(what)
    return stream.getvalue().splitlines()


def test_where_nothing_is_folded_it_is_as_rich_lays_it_out() -> None:
    # Markup in a string is rich's own affair, so the rows here are texts.
    assert printed(Fitted(table(NAMES)), 100) == printed(table(NAMES), 100)


@pytest.mark.parametrize("width", [20, 24, 30, 38, 40, 60])
def test_every_row_keeps_its_numbers_beside_its_name(width: int) -> None:
    names = [
        f"row{number}:" + " word" * 3 * number + "x" * 30 * (number % 2) for number in range(9)
    ]
    lines = [line.split() for line in printed(Fitted(table(names)), width)]
    for number in range(len(names)):
        # The line on which the row's name begins, in each part.
        (first, *more) = [line for line in lines if line[:1] and line[0][:5] == f"row{number}:"]
        assert f"{10**number}" in first
        assert "good" in (more[-1] if more else first)


def test_no_column_is_folded_below_what_can_be_read() -> None:
    lines = printed(Fitted(table(["y" * 99])), 40)
    pieces = [line.split()[0] for line in lines if line.strip().startswith("y")]
    assert "".join(pieces).count("y") % 99 == 0
    assert all(len(piece) >= min(LEAST_TEXT, 99 % LEAST_TEXT) for piece in pieces)
