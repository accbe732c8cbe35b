"""The verdict on one claim of the paper: the numbers, and whether they show it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ClaimTable:
    """Some of a verdict's numbers as a page shows them: at most six columns."""

    caption: str
    """What the rows are, and of which of them the verdict is made."""
    rows: pd.DataFrame
    """The cells; texts where a number stands with its interval."""


@dataclass(frozen=True)
class Verdict:
    """What runs say about one claim of the paper."""

    claim: int
    """Number of the claim, 1 to 5."""
    statement: str
    """The claim in one sentence."""
    criterion: str
    """When the claim counts as shown: measures, comparison and thresholds."""
    refuted: str
    """What would show the opposite: the parts of the criterion, turned round."""
    shown: bool | None
    """Whether the runs meet the criterion; ``None`` where they do not suffice to say."""
    numbers: pd.DataFrame
    """What was measured, one row a condition, plain column names."""
    tables: tuple[ClaimTable, ...] = field(default=())
    """The same numbers for a reader."""
    remarks: tuple[str, ...] = field(default=())
    """What a reader must know besides: diverged cells, missing runs, what failed at this size."""

    @property
    def shown_tables(self) -> tuple[ClaimTable, ...]:
        """The tables for a reader; the numbers themselves where there are none."""
        return self.tables or (ClaimTable("", self.numbers),)

    @property
    def answer(self) -> str:
        """The verdict in words: shown, not shown at this size, or cannot be said."""
        if self.shown is None:
            return "cannot be said"
        return "shown" if self.shown else "not shown at this size"


def every(parts: Iterable[bool | None]) -> bool | None:
    """Unite what was found of conditions that all have to hold.

    Args:
        parts: Of each whether it holds; ``None`` where runs are missing, or an interval decides
            nothing.

    Returns:
        False where one fails, else ``None`` where one cannot be said or there is none.
    """
    found = list(parts)
    if any(part is False for part in found):
        return False
    return True if found and all(found) else None


def with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """Write a number with its 95 % interval.

    Args:
        value: The number.
        low: Lower end; NaN where there is no interval.
        high: Upper end, likewise.
        digits: Digits behind the point.

    Returns:
        Such as ``1.25 [0.90, 1.60]``.

    >>> with_interval(1.25, 0.9, 1.6), with_interval(math.inf, math.nan, math.nan)
    ('1.25 [0.90, 1.60]', '∞')
    """
    number = fixed_text(value, digits)
    if math.isnan(low) or math.isnan(high):
        return number
    return f"{number} [{fixed_text(low, digits)}, {fixed_text(high, digits)}]"


def fixed_text(value: float, digits: int = 2) -> str:
    """Write a number with so many digits behind the point.

    Args:
        value: The number.
        digits: How many.

    Returns:
        The text; a dash where it is no number, ∞ where it is infinite.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")
