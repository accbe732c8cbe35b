"""Tables over runs: mean ± standard deviation (n) of any value, by any rows and columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from condexp.errors import InputError, choose, suggestion
from condexp.results.cells import Cell, average, format_cell
from condexp.results.marks import Mark

Key = tuple[object, ...]


class Format(StrEnum):
    """How a table is written."""

    RICH = "rich"
    MARKDOWN = "markdown"


@dataclass(frozen=True)
class ResultTable:
    """One value over a grid of runs.

    Attributes:
        value: Name of the value.
        rows: Names of the keys that make the rows.
        cols: Names of the keys that make the columns.
        row_keys: Values of ``rows``, one tuple a row, sorted.
        col_keys: Values of ``cols``, one tuple a column, sorted.
        cells: The cells by row key and column key; absent where there is no run.
        varied: Configuration keys but the seed that differ between the runs of one cell, so that
            its mean is over more than seeds.
    """

    value: str
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    row_keys: tuple[Key, ...]
    col_keys: tuple[Key, ...]
    cells: Mapping[tuple[Key, Key], Cell]
    varied: tuple[str, ...]


def make_table(
    frame: pd.DataFrame, rows: Sequence[str], cols: Sequence[str], value: str
) -> ResultTable:
    """Average a value over the runs of each cell.

    Runs that did not complete never enter a mean; they are counted.

    Args:
        frame: One row a run, from `collect`.
        rows: Keys whose values make the rows, such as ``model.depth``.
        cols: Keys whose values make the columns; may be empty.
        value: What to average: ``test_error``, ``last_linear.input_kappa_0.5``, …

    Returns:
        The table; every run of the frame is in one of its cells.

    Raises:
        InputError: If a key does not exist, or the value is no number.
    """
    for key in (*rows, *cols, value):
        _require_key(frame, key)
    if not is_numeric_dtype(frame[value]) or is_bool_dtype(frame[value]):
        raise InputError(f"cannot average {value!r}: its values are not numbers.")
    row_of, col_of = _keys(frame, rows), _keys(frame, cols)
    members: dict[tuple[Key, Key], list[int]] = {}
    for index, place in enumerate(zip(row_of, col_of, strict=True)):
        members.setdefault(place, []).append(index)
    return ResultTable(
        value=value,
        rows=tuple(rows),
        cols=tuple(cols),
        row_keys=tuple(sorted(set(row_of), key=_order)),
        col_keys=tuple(sorted(set(col_of), key=_order)),
        cells={place: average(frame.iloc[runs], value) for place, runs in members.items()},
        varied=_varied(frame, (*rows, *cols), list(members.values())),
    )


def render(table: ResultTable, output_format: str = Format.RICH) -> RenderableType:
    """Lay out a table.

    Args:
        table: The table.
        output_format: ``rich`` or ``markdown``.

    Returns:
        A table for the console, or the text of a markdown table (a ``str``), with notes below.

    Raises:
        InputError: If there is no such format.
    """
    header = [*table.rows, *(_column_name(table, key) for key in table.col_keys)]
    body = [
        [*map(_text, row), *(format_cell(table.cells.get((row, col))) for col in table.col_keys)]
        for row in table.row_keys
    ]
    notes = _notes(table)
    if choose("table format", output_format, list(Format)) == Format.MARKDOWN:
        return _markdown(header, body, len(table.rows), notes)
    grid = Table(title=Text(table.value), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        grid.add_column(Text(name), justify="left" if index < len(table.rows) else "right")
    for line in body:
        grid.add_row(*map(Text, line))
    return Group(grid, *(Text(note, style="dim") for note in notes))


def _require_key(frame: pd.DataFrame, key: str) -> None:
    if key in frame.columns:
        return
    # Not `choose`: it would list thousands of measures.
    names = [str(name) for name in frame.columns]
    ending = [name for name in names if name.endswith(f".{key}")]
    hint = f" Did you mean {ending[0]!r}?" if ending else suggestion(key, names)
    raise InputError(
        f"unknown table key {key!r}: a key is a configuration key (model.depth, seed), a result "
        f"(test_error) or <layer>.<measure> (last_linear.input_kappa_0.5).{hint}"
    )


def _keys(frame: pd.DataFrame, names: Sequence[str]) -> list[Key]:
    # As objects: a run without the key must not turn other runs' integers into floats.
    columns = [frame[name].astype(object) for name in names]
    values = [column.where(column.notna(), None).tolist() for column in columns]
    return list(zip(*values, strict=True)) if values else [()] * len(frame)


def _order(key: Key) -> tuple[tuple[bool, float, str], ...]:
    return tuple(
        (False, float(part), "") if isinstance(part, int | float) else (True, 0.0, _text(part))
        for part in key
    )


def _varied(
    frame: pd.DataFrame, used: Sequence[str], cells: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    keys = [key for key in frame.attrs.get("identity_keys", ()) if key in frame.columns]
    several = [list(runs) for runs in cells if len(runs) > 1]
    return tuple(
        key
        for key in keys
        if key not in {"seed", *used}
        and any(frame[key].iloc[runs].nunique(dropna=False) > 1 for runs in several)
    )


def _notes(table: ResultTable) -> list[str]:
    notes = [f"{table.value}: mean ± standard deviation (n) over complete runs"]
    marks = {cell.mark for cell in table.cells.values()}
    if Mark.ROWS in marks:
        notes.append("rows: infinite by construction, fewer rows than p·d were measured")
    if Mark.INFINITE in marks:
        notes.append("∞: infinite in at least one run")
    if table.varied:
        notes.append(f"runs in a cell also differ in {', '.join(table.varied)}")
    return notes


def _column_name(table: ResultTable, key: Key) -> str:
    pairs = zip(table.cols, key, strict=True)
    return ", ".join(f"{name}={_text(part)}" for name, part in pairs) or table.value


def _text(part: object) -> str:
    if part is None:
        return str(Mark.MISSING)
    # A frame keeps integers as floats where another run lacks the key.
    return f"{part:g}" if isinstance(part, float) else str(part)


def _markdown(
    header: Sequence[str], body: Sequence[Sequence[str]], num_keys: int, notes: Sequence[str]
) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *body)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = ["-" * w if i < num_keys else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def write(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i < num_keys else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    table = "\n".join(map(write, (lines[0], rule, *lines[1:])))
    return "\n\n".join([table, *notes])
