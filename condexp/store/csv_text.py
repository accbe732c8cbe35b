"""CSV whose texts a spreadsheet takes for texts: one that begins with ``=`` would be obeyed."""

from typing import TextIO

import pandas as pd
from pandas.api.types import is_numeric_dtype

OBEYED = ("=", "+", "-", "@", "\t", "\r")


def write_frame(frame: pd.DataFrame, stream: TextIO, *, header: bool = True) -> None:
    """Write a frame as CSV, without its index.

    Args:
        frame: Numbers stay as they are; an apostrophe stands before a text that is no number and
            that a spreadsheet would take for a formula.
        stream: Where to write; a file opened with ``newline=""``.
        header: Whether the names of the columns come first.
    """
    texts = [name for name in frame.columns if not is_numeric_dtype(frame[name])]
    guarded = {name: _guarded(frame[name]) for name in texts}
    frame.assign(**guarded).to_csv(stream, index=False, header=header, lineterminator="\n")


def _guarded(column: "pd.Series[str]") -> "pd.Series[str]":
    """Return the column with its few different values looked at once each."""
    texts = [value for value in column.unique() if isinstance(value, str)]
    risky = [text for text in texts if text.startswith(OBEYED) and not _is_number(text)]
    guarded = {text: f"'{text}" for text in risky}
    return column.map(lambda value: guarded.get(value, value)) if guarded else column


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
