"""A table for a terminal of any width: no number is folded and no head is cut."""

from copy import copy

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table

LEAST_TEXT = 24  # columns of the terminal: a text that may be folded is not folded further
ANY_WIDTH = 10**5


class Fitted:
    """A table in as many parts, one below the other, as the terminal's width takes.

    Args:
        table: The table; a column whose ``overflow`` is ``fold`` may be folded, others are not.
        num_keys: How many of its first columns say what a row is: each part begins with them.
    """

    def __init__(self, table: Table, num_keys: int = 1) -> None:
        for column in table.columns:
            column.no_wrap = column.overflow != "fold"
        self._table = table
        self._num_keys = num_keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the parts.

        Yields:
            Tables.
        """
        table, first = self._table, self._num_keys
        unlimited = options.update(width=ANY_WIDTH)
        if _width(console, unlimited, table) <= options.max_width:
            yield table
            first = len(table.columns)
        while first < len(table.columns):
            last = first + 1
            while last < len(table.columns) and (
                _width(console, unlimited, self._part(first, last + 1)) <= options.max_width
            ):
                last += 1
            part = self._part(first, last)
            if first > self._num_keys:
                part.title = None
                yield ""
            part.caption = table.caption if last == len(table.columns) else None
            yield part
            first = last

    def _part(self, first: int, last: int) -> Table:
        """Return a table of the keys and of some other columns."""
        part = copy(self._table)
        part.columns = self._table.columns[: self._num_keys] + self._table.columns[first:last]
        return part


def _width(console: Console, options: ConsoleOptions, table: Table) -> int:
    """Return the columns of the terminal that a table takes, its texts folded as far as it goes."""
    capped = copy(table)
    capped.title = capped.caption = None
    capped.columns = [copy(column) for column in table.columns]
    for column in capped.columns:
        if column.overflow == "fold":
            cells = [Measurement.get(console, options, cell).maximum for cell in column.cells]
            column.width = min(LEAST_TEXT, max([len(str(column.header)), *cells]))
    return Measurement.get(console, options, capped).maximum
