"""Tables in markdown, as plain text that lines up too."""

import math
from collections.abc import Sequence

import pandas as pd
from pandas.api.types import is_numeric_dtype

from condexp.results.tables.numbers import Mark, format_number


def markdown_grid(header: Sequence[str], body: Sequence[Sequence[str]], num_left: int) -> str:
    """Write texts as a markdown table.

    Args:
        header: Names of the columns.
        body: Lines of as many texts.
        num_left: How many columns are set to the left; numbers are set to the right.

    Returns:
        The table, without a newline at its end.
    """
    lines = [[text.replace("|", "\\|") for text in line] for line in (header, *body)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = ["-" * w if i < num_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def write(texts: Sequence[str]) -> str:
        padded = [
            text.ljust(w) if i < num_left else text.rjust(w)
            for i, (text, w) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(write, (lines[0], rule, *lines[1:])))


def markdown_frame(frame: pd.DataFrame) -> str:
    """Write a frame as a markdown table, numbers in three significant digits.

    Args:
        frame: Columns of texts first, then of numbers.

    Returns:
        The table, without a newline at its end.

    >>> print(markdown_frame(pd.DataFrame({"net": ["a"], "mean": [0.12345], "n": [2]})))
    | net |  mean |   n |
    | --- | ----: | --: |
    | a   | 0.123 |   2 |
    """
    texts = [not is_numeric_dtype(frame[name]) for name in frame.columns]
    num_left = texts.index(False) if False in texts else len(texts)
    body = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    return markdown_grid([str(name) for name in frame.columns], body, num_left)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(Mark.MISSING) if math.isnan(value) else format_number(value)
    return str(Mark.MISSING) if value is None else str(value)
