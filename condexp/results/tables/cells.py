"""The text of each field of a table, whatever format it is written in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from condexp.results.tables.differences import Contrast, Differences
from condexp.results.tables.keys import Key, describe, key_text
from condexp.results.tables.numbers import Mark, format_number, is_kappa
from condexp.results.tables.published import citations
from condexp.results.tables.table import Cell, Place, ResultTable

MOST_COLUMNS = 6  # of a table on a page


@dataclass(frozen=True)
class Entry:
    """One field of a table.

    Attributes:
        number: A number with its deviation or interval, or what stands in place of it.
        runs: What it was taken over; may be empty.
        best: Whether it is the best of its row or column.
    """

    number: str
    runs: str = ""
    best: bool = False

    @property
    def suffix(self) -> str:
        """The runs, ready to follow the number."""
        return f" ({self.runs})" if self.runs else ""

    def __str__(self) -> str:
        return f"{self.number}{self.suffix}"


@dataclass(frozen=True)
class Layout:
    """A table ready to be written.

    Attributes:
        title: What stands above.
        keys: Headers of the columns that hold keys.
        columns: Headers of the other columns, each in some lines.
        body: The lines: as many texts as there are keys, as many entries as there are columns.
        notes: What stands below.
        best: What an entry is that is the best; empty where none is.
    """

    title: str
    keys: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    body: tuple[tuple[tuple[str, ...], tuple[Entry, ...]], ...]
    notes: tuple[str, ...]
    best: str = ""


def lay_out(table: ResultTable) -> list[Layout]:
    """Lay out a table, and its paired differences as another.

    Args:
        table: The table.

    Returns:
        One or two tables; three where more than six columns would stand side by side: published
        values have their own then.
    """
    shown = _published_columns(table)
    columns = [describe(table.cols, col) or (table.value,) for col in table.col_keys]
    names = [_published_name(table, col) for col in shown]
    body = [
        tuple(
            cell_entry(table.cells.get((row, col)), best=(row, col) in table.best)
            for col in table.col_keys
        )
        for row in table.row_keys
    ]
    others = [tuple(_published(table, (row, col)) for col in shown) for row in table.row_keys]
    beside = len(table.rows) + len(columns) + len(names) <= MOST_COLUMNS
    if beside:
        columns, body = (
            columns + names,
            [own + more for own, more in zip(body, others, strict=True)],
        )
    where = "row" if len(table.col_keys) > 1 else "column"
    best = f"the lowest mean of each {where}, where all its paired 95 % intervals exclude 0"
    keys = [tuple(map(key_text, row)) for row in table.row_keys]
    main = Layout(
        title=table.title,
        keys=table.rows,
        columns=tuple(columns),
        body=tuple(zip(keys, body, strict=True)),
        notes=tuple(_notes(table, sources=beside)),
        best=best if table.best else "",
    )
    layouts = [main]
    if not beside and shown:
        known = [
            (key, row) for key, row in zip(keys, others, strict=True) if any(e.number for e in row)
        ]
        title = f"{table.title}: published values"
        layouts.append(
            Layout(title, table.rows, tuple(names), tuple(known), tuple(_sources(table)))
        )
    return layouts + ([_differences(table, table.differences)] if table.differences else [])


def cell_entry(cell: Cell | None, *, best: bool = False) -> Entry:
    """Write a cell: mean ± std (n), and what became of the runs that are not in its mean.

    A condition number has a geometric mean and a factor, ×/÷; where a run has an infinite one, the
    median; where one is a lower bound, a bound as well (≥).

    Args:
        cell: The cell; ``None`` where the grid has no run.
        best: Whether it is the best of its row or column.

    Returns:
        ``12.34 ± 0.56 (5)``, ``3.5e7 ×/÷ 1.7 (5)``, ``median 3.5e7 (5, ∞ in 1)``; the deviation is
        left out for a single run.

    >>> print(cell_entry(Cell(12.34, 0.56, 4, {"diverged": 1}, Mark.NONE)))
    12.34 ± 0.56 (4 of 5: 1 diverged)
    """
    if cell is None:
        return Entry(str(Mark.MISSING), "0")
    reasons = ", ".join(f"{num} {reason}" for reason, num in cell.missing.items())
    runs = f"{cell.num} of {cell.num_runs}: {reasons}" if reasons else str(cell.num)
    if 0 < cell.num_infinite < cell.num:
        runs += f", ∞ in {cell.num_infinite}"
    sign = ""
    if not cell.mark and (cell.num_bounds or cell.num_estimates):
        sign = f"{Mark.AT_LEAST if cell.num_bounds else Mark.ESTIMATED} "
    return Entry(f"{sign}{_number(cell)}", runs, best)


def _number(cell: Cell) -> str:
    """Return the centre of a cell, and the deviation beside it."""
    if cell.mark:
        return str(cell.mark)
    if cell.num_infinite:
        return f"median {format_number(cell.mean)}"
    if cell.decades:
        factor = "" if math.isnan(cell.std) else f" ×/÷ {format_number(10**cell.std)}"
        return f"{format_number(cell.mean)}{factor}"
    deviation = "" if math.isnan(cell.std) else f" ± {_fixed(cell.std, cell.mean)}"
    return f"{_fixed(cell.mean, cell.mean)}{deviation}"


def _fixed(number: float, mean: float) -> str:
    """Return a mean, its deviation or an end of its interval with as many digits as the mean has.

    Returns:
        Two decimals, which suit percentages, or three significant digits where the mean is small
        or large.
    """
    return f"{number:.2f}" if mean == 0 or 0.1 <= abs(mean) < 1e3 else format_number(number)


def _published_columns(table: ResultTable) -> list[Key]:
    columns = {col for _, col in table.published or ()}
    return [col for col in table.col_keys if col in columns]


def _published_name(table: ResultTable, col: Key) -> tuple[str, ...]:
    """Return a header by which a published value cannot be taken for one of these data."""
    found = [one for (_, key), one in (table.published or {}).items() if key == col]
    sources = dict.fromkeys(
        f"published on {one.published.dataset} by {one.published.source}" for one in found
    )
    other = () if all(one.same_data for one in found) else ("not these runs' data",)
    return (*describe(table.cols, col), *sources, *other)


def _published(table: ResultTable, place: Place) -> Entry:
    found = (table.published or {}).get(place)
    return Entry(found.published.number, found.published.runs) if found else Entry("")


def _sources(table: ResultTable) -> list[str]:
    return citations(list((table.published or {}).values())) or ["no published value is at hand"]


def _notes(table: ResultTable, *, sources: bool) -> list[str]:
    cells = table.cells.values()
    what = "mean ± standard deviation (n)"
    if is_kappa(table.value):
        what = "geometric mean ×/÷ geometric standard deviation (n)"
    notes = [f"{table.value}: {what} over complete runs"]
    if any(cell.missing for cell in cells):
        notes.append("n of m: the other runs are not in the mean, for the reason given")
    marks = {cell.mark for cell in cells}
    if Mark.ROWS in marks:
        notes.append("rows: infinite by construction, fewer rows than p·d were measured")
    if any(cell.num_infinite for cell in cells):
        notes.append("where a run is infinite the median stands, ∞ being the largest value")
    if any(cell.num_bounds for cell in cells):
        notes.append("≥: a run's number is a lower bound, its eigenvalue cannot be told from 0")
    if any(cell.num_estimates for cell in cells):
        notes.append("≈: of a matrix too wide to be solved for, estimated within an interval")
    if table.varied:
        notes.append(f"runs in a cell also differ in {', '.join(table.varied)}")
    if table.published is not None and (sources or not table.published):
        notes += _sources(table)
    return notes


def _differences(table: ResultTable, found: Differences) -> Layout:
    columns = [(col, other) for col in found.col_keys for other in found.others]
    names = [(*describe(found.cols, col), found.name(other)) for col, other in columns]
    body = tuple(
        (
            tuple(map(key_text, row)),
            tuple(_contrast(found.cells.get((row, *column))) for column in columns),
        )
        for row in found.row_keys
    )
    what = f"log₁₀ of {table.value}" if is_kappa(table.value) else table.value
    notes = [f"{what}: mean difference [95 % t-interval] (n) over pairs of runs of one seed"]
    if any(cell.difference.num_infinite for cell in found.cells.values()):
        notes.append(
            "where a difference is infinite: the median, and the p-value of Wilcoxon's signed "
            "ranks, ∞ being the largest"
        )
    if any(cell.num_bounds for cell in table.cells.values()):
        notes.append("a run's lower bound (≥) enters as it stands")
    if any(cell.difference.num < cell.num_pairs for cell in found.cells.values()):
        notes.append("n of m: the other pairs lack a complete run with a value")
    return Layout(
        title=f"{table.title}: paired differences",
        keys=found.rows,
        columns=tuple(names),
        body=body,
        notes=tuple(notes),
    )


def _contrast(contrast: Contrast | None) -> Entry:
    if contrast is None:
        return Entry(str(Mark.MISSING), "0")
    found = contrast.difference
    ends: Sequence[str] = [_fixed(end, found.mean) for end in (found.low, found.high)]
    beside = f" [{', '.join(ends)}]" if found.num > 1 else ""
    if found.num_infinite:
        beside = f", p = {format_number(found.p_value)}"
    number = _fixed(found.mean, found.mean)
    few = found.num < contrast.num_pairs
    return Entry(
        f"{number}{beside}",
        f"{found.num} of {contrast.num_pairs} pairs" if few else str(found.num),
    )
