"""The rows of a run's page: its layers, and below them the network as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from condexp.analysis.vocabulary import CURVATURE_MATRICES
from condexp.results.layer_measures import LayerMeasures, Measure
from condexp.results.layer_names import short_names
from condexp.results.run_view import EXPLANATIONS
from condexp.results.tables.numbers import Mark
from condexp.store.reader import Run

MARKS = (Mark.NONE, *EXPLANATIONS, Mark.MISSING)
WHOLE = "the network"


@dataclass(frozen=True)
class Rows:
    """The measures of the layers, and of the network where a matrix of all of it was measured.

    Attributes:
        layers: The layers', S snapshots of L layers.
        network: The network's as those of one layer; None where there is no such matrix.
    """

    layers: LayerMeasures
    network: LayerMeasures | None

    @classmethod
    def read(cls, run: Run) -> "Rows":
        """Read every committed snapshot of a run.

        Args:
            run: The run.

        Returns:
            The rows.
        """
        layers = LayerMeasures.read(run)
        whole = len(layers.steps) > 0 and (run.curvature or "fisher" in layers.matrices)
        return cls(layers, LayerMeasures.read_network(run) if whole else None)

    @cached_property
    def names(self) -> list[str]:
        """What R rows are called."""
        return [*self.layers.layers, *([WHOLE] if self.network else [])]

    @cached_property
    def short_names(self) -> list[str]:
        """The same, without what long names have in common."""
        return [*short_names(self.layers.layers), *([WHOLE] if self.network else [])]

    @cached_property
    def types(self) -> list[str]:
        """What kind of layer a row is."""
        return [*map(str, self.layers.arrays["type"]), *(["all together"] if self.network else [])]

    @cached_property
    def matrices(self) -> dict[str, tuple[bool, bool]]:
        """Every matrix that was measured: whether of the layers, and whether of the network."""
        found = {str(matrix): (True, False) for matrix in self.layers.matrices}
        for matrix in ("fisher", *CURVATURE_MATRICES):
            of = tuple(
                part is not None and f"{matrix}_status" in part.arrays
                for part in (self.layers, self.network)
            )
            if any(of):
                found[str(matrix)] = (of[0], of[1])
        return found

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Every measure by name."""
        return (self.network.measures if self.network else {}) | self.layers.measures

    def values(self, name: str) -> NDArray[np.float64]:
        """Return a measure, or the noise floor of a matrix.

        Args:
            name: Its name.

        Returns:
            ``[S, R]``; NaN where a row has none.
        """
        return np.concatenate([self._values(part, name) for part in self._parts], axis=1)

    def codes(self, name: str) -> NDArray[np.uint8]:
        """Say which values are no plain numbers.

        Args:
            name: As for :meth:`values`.

        Returns:
            ``[S, R]`` places in `MARKS`.
        """
        return np.concatenate([self._codes(part, name) for part in self._parts], axis=1)

    def several(
        self, name: str, snapshots: NDArray[np.int64], rows: Sequence[int]
    ) -> NDArray[np.float64]:
        """Return numbers of which a row has several, such as eigenvalues.

        Args:
            name: The array's name in the file; one of these rows has to have it.
            snapshots: Places of s snapshots, ascending.
            rows: Places of r rows.

        Returns:
            ``[s, r, n]``; NaN where a row has none.
        """
        num = len(self.layers.layers)
        places = [(self.layers, row) if row < num else (self.network, 0) for row in rows]
        found = [(part.arrays.get(name) if part else None, place) for part, place in places]
        length = next(array.shape[-1] for array, _ in found if array is not None)
        values = np.full((len(snapshots), len(rows), length), np.nan)
        for index, (array, place) in enumerate(found):
            if array is not None:
                there = snapshots[snapshots < len(array)]
                values[: len(there), index] = array[there, place]
        return values

    @property
    def _parts(self) -> list[LayerMeasures]:
        return [self.layers, *([self.network] if self.network else [])]

    def _values(self, part: LayerMeasures, name: str) -> NDArray[np.float64]:
        known = part.values(name) if name in part.measures else part.arrays.get(name)
        return self._cut(known, len(part.layers))

    def _codes(self, part: LayerMeasures, name: str) -> NDArray[np.uint8]:
        finite = np.isfinite(self._values(part, name))
        codes = np.where(finite, 0, MARKS.index(Mark.MISSING)).astype(np.uint8)
        if name in part.measures:
            marks = part.marks(name)[: len(codes)]
            for code, mark in enumerate(MARKS):
                codes[: len(marks)][marks == mark] = code
        return codes

    def _cut(self, array: NDArray[np.float64] | None, *shape: int) -> NDArray[np.float64]:
        """Return as many snapshots as the layers have: a run that goes on may have more by now."""
        cut = np.full((len(self.layers.steps), *shape), np.nan)
        if array is not None:
            num = min(len(array), len(cut))
            cut[:num] = array[:num]
        return cut
