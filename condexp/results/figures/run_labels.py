"""Names of runs in a legend: by what tells them apart."""

import textwrap
from collections.abc import Sequence

from condexp.results.config_keys import differences
from condexp.results.figures.style import Size
from condexp.results.run_view import headline
from condexp.store.reader import Run
from condexp.store.run_folder.identity import identity_config

LETTERS = {Size.TEXT: 110, Size.COLUMN: 46}  # of a legend's line that has the width to itself
LINE_INCHES = 0.17


def run_labels(runs: Sequence[Run], size: Size) -> list[str]:
    """Name runs by how they differ, in lines that fit the figure.

    Args:
        runs: The runs.
        size: How wide the figure is.

    Returns:
        A name each; of a run alone what it is, of repetitions their folders.
    """
    if len(runs) == 1:
        names = [headline(runs[0])]
    else:
        names = differences([identity_config(run.config) for run in runs])
    names = [name or run.path.name for name, run in zip(names, runs, strict=True)]
    return [textwrap.fill(name, LETTERS[size], break_on_hyphens=False) for name in names]


def legend_inches(labels: Sequence[str]) -> float:
    """Return the height of a legend of these labels, one below the other."""
    return LINE_INCHES * sum(label.count("\n") + 1 for label in labels)
