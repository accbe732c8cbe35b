"""Figures drawn from stored files alone, one file each.

Importing this package imports matplotlib, so only what draws does.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from condexp.results.figures.overview import overview
from condexp.store.reader import Run

FIGURES: Mapping[str, Callable[[Run, Path], tuple[Path, ...]]] = {
    "overview": overview,
}
"""By name, what draws a run into a folder and returns the files."""
