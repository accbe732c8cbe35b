"""Published values beside measured ones: a small cited file, shown only under its own data's name.

``published.csv`` holds figures that were read in their source; what could not be is not in it.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import pandas as pd

from condexp.results.config_keys import setting_text

FILE = "published.csv"
# Column of the file: configuration key that a run must have the same value of.
MODEL_KEYS = {
    "model": "model.name",
    "depth": "model.depth",
    "last_bn": "model.last_bn",
    "dropout": "model.dropout",
}
SHRUNK = ("dataset.subset.train", "dataset.subset.test", "dataset.image_size")


@dataclass(frozen=True)
class Published:
    """A published value, as its source gives it.

    Attributes:
        experiment: The preset that repeats it.
        dataset: The data set it was obtained on, at its full size.
        model: Configuration keys of the model, with their values as text.
        value: What was published, such as ``test_error``.
        mean: The figure.
        std: Its standard deviation, as text; empty where none is given.
        num: Number of runs, as text; empty where it is not given.
        statistic: ``median`` where it is no mean.
        source: Who published it, in a few words.
        citation: Where exactly.
    """

    experiment: str
    dataset: str
    model: Mapping[str, str]
    value: str
    mean: str
    std: str
    num: str
    statistic: str
    source: str
    citation: str

    @property
    def number(self) -> str:
        """The figure with its deviation, as a cell writes it."""
        return f"{self.mean} ± {self.std}" if self.std else self.mean

    @property
    def runs(self) -> str:
        """What it was taken over, where the source says so: ``"5"``, ``"median of 5"``."""
        return f"{self.statistic} of {self.num}" if self.statistic else self.num


@dataclass(frozen=True)
class Counterpart:
    """A published value beside a cell of a table.

    Attributes:
        published: The value.
        same_data: Whether all runs of the cell were trained on its data set at full size.
    """

    published: Published
    same_data: bool


@cache
def read_published() -> tuple[Published, ...]:
    """Read the file of published values.

    Returns:
        Its lines, in their order.
    """
    text = files("condexp.results.tables").joinpath(FILE).read_text(encoding="utf-8")
    lines = []
    for line in csv.DictReader(text.splitlines()):
        model = {key: line.pop(column) for column, key in MODEL_KEYS.items()}
        lines.append(Published(model={key: text for key, text in model.items() if text}, **line))
    return tuple(lines)


def find_published(runs: pd.DataFrame, value: str) -> Counterpart | None:
    """Find what was published for the model that all runs of a cell share.

    Args:
        runs: The runs of the cell, rows of `collect`'s frame.
        value: Name of the cell's value.

    Returns:
        The value published for this model and the runs' data set or experiment, if there is one.
    """
    dataset, experiment = _shared(runs, "dataset.name"), _shared(runs, "experiment")
    for line in read_published():
        if (
            line.value == value
            and (line.dataset == dataset or line.experiment == experiment)
            and all(_shared(runs, key) == text for key, text in line.model.items())
        ):
            shrunk = [key for key in SHRUNK if key in runs and runs[key].notna().any()]
            return Counterpart(line, line.dataset == dataset and not shrunk)
    return None


def citations(counterparts: Sequence[Counterpart]) -> list[str]:
    """Say where published values come from, and that they are none of these runs'.

    Args:
        counterparts: The values shown.

    Returns:
        One sentence a source.
    """
    sources = dict.fromkeys(
        (line.published.dataset, line.published.source, line.published.citation)
        for line in counterparts
    )
    return [
        f"{source}, on {dataset} at full size: {citation}" for dataset, source, citation in sources
    ]


def _shared(runs: pd.DataFrame, key: str) -> str | None:
    """Return the value of a key that all runs have, as the file writes it."""
    if key not in runs:
        return None
    values = set(runs[key].astype(object))
    (value,) = values if len(values) == 1 else (None,)
    # A frame keeps numbers as floats where another run lacks the key.
    return f"{value:g}" if isinstance(value, float) else setting_text(value)
