"""Figures drawn from stored files alone: each a module, and in it a function, of its name.

A module that draws imports matplotlib, so it is imported only when its figure is asked for.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from condexp.errors import choose

if TYPE_CHECKING:
    from condexp.results.figures.style import Size
    from condexp.store.reader import Run

NAMES = (
    "overview",
    "spectrum",
    "density",
    "sharpness",
    "compare",
    "validation",
    "stability",
    "domination",
    "conditioning",
    "last_layer",
    "closeness",
)
OF_GRIDS = ("stability", "domination", "conditioning", "last_layer")
OF_ONE_RUN = ("overview", "spectrum", "density")
"""Drawn of each run by itself; the others show all runs together."""


OPTIONS = {
    "spectrum": ("layer", "matrix"),
    "density": ("layer", "matrix"),
    "compare": ("measure", "layer"),
}
"""What figures take besides runs and a size."""


class Figure(Protocol):
    """A function that draws the runs of a sweep as one figure."""

    def __call__(
        self, runs: "Sequence[Run]", folder: Path, *, size: "Size", **options: str
    ) -> tuple[Path, ...]:
        """Draw.

        Args:
            runs: The runs, one or more; of a figure ``OF_ONE_RUN`` just one.
            folder: Where to write ``<name>`` as ``.pdf``, ``.png``, ``.svg`` and ``.csv``.
            size: How wide it is printed.
            **options: What the figure takes besides, by name: see ``OPTIONS``.

        Returns:
            The paths of these four.

        Raises:
            InputError: If a measure is missing; names it and the option that records it.
        """


def find_figure(name: str) -> Figure:
    """Find the function that draws a figure.

    Args:
        name: One of ``NAMES``.

    Returns:
        ``condexp.results.figures.<name>.<name>``.

    Raises:
        InputError: If there is no figure of that name.
    """
    module = import_module(f"{__name__}.{choose('figure', name, NAMES)}")
    return cast("Figure", getattr(module, name))
