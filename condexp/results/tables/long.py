"""A table as CSV has it: one line a number, unrounded."""

import math
from itertools import product
from typing import Any

import pandas as pd

from condexp.results.tables.keys import key_text
from condexp.results.tables.numbers import Mark
from condexp.results.tables.table import Cell, ResultTable

NUMBERS = ("mean", "std", "low", "high", "p_value", "n", "of", "infinite", "bounds")
NO_RUN = Cell(math.nan, math.nan, 0, {}, Mark.MISSING)


def long_table(table: ResultTable) -> pd.DataFrame:
    """Write a table in long form.

    Args:
        table: The table.

    Returns:
        One row a number. Columns: ``kind``, which is ``cell``, ``difference`` or ``published``; the
        keys of rows and columns; ``value``; ``mean``; ``std`` of a cell, ``low`` and ``high`` ends
        of a difference's 95 % interval, or the ``p_value`` of its signed ranks; ``n`` runs or pairs
        in the mean ``of`` so many, of them ``infinite`` or lower ``bounds``; ``missing`` by reason;
        ``mark``, why a mean is no number; ``best``; ``data`` it was obtained on; and the published
        value's ``source``. Of condition numbers ``mean`` is geometric in a cell, the median where
        one is infinite; ``std`` and differences are of log₁₀ κ.
    """
    keys = list(dict.fromkeys((*table.rows, *table.cols)))
    lines = [*_cells(table), *_differences(table), *_published(table)]
    if table.differences and table.differences.key not in keys:
        keys.append(table.differences.key)
    columns = ["kind", *keys, "value", *NUMBERS, "missing", "mark", "best", "data", "source"]
    # As objects: counts stay whole beside lines that have none.
    return pd.DataFrame(lines, columns=columns, dtype=object)


def _cells(table: ResultTable) -> list[dict[str, Any]]:
    return [
        _places(table.rows, row)
        | _places(table.cols, col)
        | {
            "kind": "cell",
            "value": table.value,
            "mean": cell.mean,
            "std": cell.std,
            "n": cell.num,
            "of": cell.num_runs,
            "infinite": cell.num_infinite,
            "bounds": cell.num_bounds,
            "missing": ", ".join(f"{num} {reason}" for reason, num in cell.missing.items()),
            "mark": str(cell.mark),
            "best": str((row, col) in table.best).lower(),
            "data": table.data,
        }
        for row in table.row_keys
        for col in table.col_keys
        for cell in [table.cells.get((row, col), NO_RUN)]
    ]


def _differences(table: ResultTable) -> list[dict[str, Any]]:
    found = table.differences
    if found is None:
        return []
    return [
        _places(found.rows, row)
        | _places(found.cols, col)
        | {
            "kind": "difference",
            found.key: f"{key_text(other)} - {key_text(found.reference)}",
            "value": table.value,
            "mean": contrast.difference.mean,
            "low": contrast.difference.low,
            "high": contrast.difference.high,
            "p_value": contrast.difference.p_value,
            "infinite": contrast.difference.num_infinite,
            "n": contrast.difference.num,
            "of": contrast.num_pairs,
            "data": table.data,
        }
        for row, col in product(found.row_keys, found.col_keys)
        for other in found.others
        if (contrast := found.cells.get((row, col, other)))
    ]


def _published(table: ResultTable) -> list[dict[str, Any]]:
    return [
        _places(table.rows, row)
        | _places(table.cols, col)
        | {
            "kind": "published",
            "value": table.value,
            "mean": one.published.mean,
            "std": one.published.std,
            "n": one.published.num,
            "data": f"{one.published.dataset}, full size",
            "source": f"{one.published.source}: {one.published.citation}",
        }
        for (row, col), one in (table.published or {}).items()
    ]


def _places(names: tuple[str, ...], key: tuple[object, ...]) -> dict[str, str]:
    return {name: key_text(part) for name, part in zip(names, key, strict=True)}
