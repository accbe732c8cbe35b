"""What one process has collected of a layer, for another one to merge."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class LayerState:
    """Statistics of a layer, of complete passes.

    Args:
        parts: States of the parts of :class:`.LayerStatistics`, in their order there.
        uses: Number of calls in a pass.
        positions: Number T of rows that a sample contributes in one call.
        num_samples: N of the passes whose gradients came.
        underflow: See :func:`.underflow`.
        has_unseen_uses: See :class:`.LayerStatistics`.
    """

    parts: tuple[Any, ...]
    uses: int
    positions: int
    num_samples: int
    underflow: float
    has_unseen_uses: bool
