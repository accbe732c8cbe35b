"""A table for a terminal of any width: no number is folded and no head is cut."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

LEAST_TEXT = 24  # columns of the terminal: a text that may be folded is not folded further
ANY_WIDTH = 10**5


class Fitted:
    """A table in as many parts, one below the other, as the terminal's width takes.

    Args:
        table: The table, of texts; a column whose ``overflow`` is ``fold`` may be folded, others
            are not.
        num_keys: How many of its first columns say what a row is: each part begins with them.
    """

    def __init__(self, table: Table, num_keys: int = 1) -> None:
        self._table = table
        self._num_keys = num_keys
        self._cells = [[_text(cell) for cell in column.cells] for column in table.columns]
        self._natural = [
            max(map(_width, (_text(column.header), *cells)))
            for column, cells in zip(table.columns, self._cells, strict=True)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the parts.

        Yields:
            Tables.
        """
        parts = self._parts(console, options)
        for number, part in enumerate(parts):
            table = self._laid_out(console, part, self._widths(console, options, part))
            if number:
                table.title = None
                yield ""
            if number < len(parts) - 1:
                table.caption = None
            yield table

    def _parts(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """Return the columns of each part: as many as fit."""
        keys, others = range(self._num_keys), range(self._num_keys, len(self._natural))
        if self._room(console, options, [*keys, *others]) >= 0:
            return [[*keys, *others]]
        parts: list[list[int]] = []
        for column in others:
            if not parts or self._room(console, options, [*parts[-1], column]) < 0:
                parts.append([*keys])
            parts[-1].append(column)
        return parts

    def _room(self, console: Console, options: ConsoleOptions, part: Sequence[int]) -> int:
        """Return what a part leaves of the terminal's width, its texts folded as far as it goes."""
        table = self._empty(part, {i: self._least(i) for i in part})
        unlimited = options.update(width=ANY_WIDTH)
        return options.max_width - Measurement.get(console, unlimited, table).maximum

    def _least(self, column: int) -> int:
        """Return what a column may be folded to."""
        natural = self._natural[column]
        return min(natural, LEAST_TEXT) if self._folds(column) else natural

    def _folds(self, column: int) -> bool:
        return self._table.columns[column].overflow == "fold"

    def _widths(
        self, console: Console, options: ConsoleOptions, part: Sequence[int]
    ) -> dict[int, int]:
        """Return the width of each column: those that fold share what is left, the short first."""
        widths = {i: self._least(i) for i in part}
        room = self._room(console, options, part)
        folding = sorted(filter(self._folds, part), key=lambda i: self._natural[i])
        for place, i in enumerate(folding):
            extra = min(self._natural[i] - widths[i], room // (len(folding) - place))
            widths[i] = max(1, widths[i] + extra)  # in a terminal too narrow for any part, less
            room -= extra
        return widths

    def _empty(self, part: Iterable[int], widths: Mapping[int, int]) -> Table:
        """Return a table of some of the columns, without rows."""
        table = copy(self._table)
        table.columns, table.rows = [], []
        for i in part:
            column = self._table.columns[i]
            table.add_column(
                column.header,
                justify=column.justify,
                vertical=column.vertical,
                width=widths[i],
                no_wrap=True,
            )
        return table

    def _laid_out(self, console: Console, part: Sequence[int], widths: Mapping[int, int]) -> Table:
        """Return a part as a table of one row: rich takes three times as long for a row a run."""
        table = self._empty(part, widths)
        columns: list[list[Text]] = [[] for _ in part]
        for row in zip(*(self._cells[i] for i in part), strict=True):
            folded = [
                [cell]
                if _is_line(cell, widths[i])
                else cell.wrap(console, widths[i], overflow="fold")
                for i, cell in zip(part, row, strict=True)
            ]
            height = max(map(len, folded))
            for column, lines in zip(columns, folded, strict=True):
                column += [*lines, *[Text()] * (height - len(lines))]
        table.add_row(*(Text("\n").join(column) for column in columns))
        return table


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def _is_line(cell: Text, width: int) -> bool:
    return cell.cell_len <= width and "\n" not in cell.plain and "\t" not in cell.plain


def _width(cell: Text) -> int:
    """Return the columns of the terminal that a text takes, unfolded."""
    lines = cell.plain.expandtabs().split("\n")
    return max(Text(line).cell_len for line in lines) if len(lines) > 1 else cell.cell_len
