"""Figures drawn from stored files alone, one file each.

Importing this package imports matplotlib, so only what draws does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from condexp.results.figures.conditioning import conditioning
from condexp.results.figures.domination import domination
from condexp.results.figures.last_layer import last_layer
from condexp.results.figures.overview import overview
from condexp.results.figures.stability import stability
from condexp.results.figures.style import Size
from condexp.results.figures.validation import validation
from condexp.store.reader import Run


class Draw(Protocol):
    """What draws the runs of a grid as one figure."""

    def __call__(self, runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
        """Draw.

        Args:
            runs: The runs, one or more.
            folder: Where to write ``<name>.pdf``, ``<name>.png`` and ``<name>.csv``.
            size: How wide it is printed.

        Returns:
            The paths of these three.

        Raises:
            InputError: If a measure is missing; names it and the option that records it.
        """


def overview_of_one(runs: Sequence[Run], folder: Path, *, size: Size) -> tuple[Path, ...]:
    """One run at a glance: the spectra of its layers over training, above loss and error.

    Args:
        runs: The run alone.
        folder: Where to write.
        size: How wide it is printed.

    Returns:
        The paths of the PDF, the PNG and the CSV of what was drawn.
    """
    (run,) = runs
    return overview(run, folder, size=size)


FIGURES: Mapping[str, Draw] = {
    "overview": overview_of_one,
    "validation": validation,
    "stability": stability,
    "domination": domination,
    "conditioning": conditioning,
    "last_layer": last_layer,
}
"""By name, what draws it."""
FIGURES_OF_ONE_RUN = ("overview",)
"""Drawn of each run by itself; the others show all runs together."""
