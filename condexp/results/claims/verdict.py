"""The verdict on one claim of the paper: the numbers, and whether they show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Verdict:
    """What runs say about one claim of the paper."""

    claim: int
    """Number of the claim, 1 to 5."""
    statement: str
    """The claim in one sentence."""
    criterion: str
    """When the claim counts as shown: measures, comparison and thresholds."""
    shown: bool | None
    """Whether the runs meet the criterion; ``None`` where they do not suffice to say."""
    numbers: pd.DataFrame
    """What was measured, one row a condition, plain column names."""
    remarks: tuple[str, ...] = field(default=())
    """What a reader must know besides: diverged cells, missing runs, what failed at this size."""

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
