"""The process that passes a run's committed rows on to one logger.

A logger is another program: it may block, exit, seize signals, draw random numbers. So it has a
process of its own, which reads the run like any other reader; the run only wakes it. Standard input
is a line of JSON, then a byte whenever rows were committed; its end is the end of the run. What
failed is said on the file descriptor that is named by the first argument.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd

from condexp.errors import InputError, visible
from condexp.results.layer_measures import LayerMeasures
from condexp.results.loggers.choice import chosen_layers, chosen_measures
from condexp.results.tables.numbers import Mark
from condexp.store.disk import write_json
from condexp.store.files import read_json
from condexp.store.reader import Run
from condexp.store.run_folder.status import FINISHED, read_status
from condexp.store.schema.layout import FILE_NAME
from condexp.store.schema.matrices import NETWORK

METRICS = ("train_loss", "train_error", "test_loss", "test_error")
PICTURE = "overview.png"
AT_LEAST = "_at_least"  # what is known from below only must not look like a number
SECRET = re.compile("key|token|password|secret", re.IGNORECASE)


@dataclass(frozen=True)
class FollowedRun:
    """What a logger is told of a run beforehand.

    Attributes:
        folder: The run's folder, absolute.
        experiment: The experiment's name.
        logger: The logger's name.
        options: The logger's own keys.
        layers: ``logger.layers``.
        measures: ``logger.measures``.
        hyperparameters: The identity configuration, which decides the run's numbers.
    """

    folder: str
    experiment: str
    logger: str
    options: Mapping[str, Any]
    layers: list[str]
    measures: list[str] | None
    hyperparameters: Mapping[str, Any]

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what :meth:`to_json` wrote.

        Args:
            text: The line.

        Returns:
            The run.
        """
        return cls(**json.loads(text))

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder)


class Logger(Protocol):
    """A logger's run. ``Logger(run, run_id)`` begins it, or where there is an id goes on with it.

    Attributes:
        run_id: What the logger calls it.
    """

    run_id: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the finite numbers of a step; steps ascend, and one may come in two parts."""

    def flush(self) -> None:
        """Bring what was taken where it outlives this process."""

    def finish(self, step: int, picture: Path | None) -> None:
        """End the run with its heat map, layers by steps, where there is one."""

    def close(self) -> None:
        """Leave the run, which may be resumed."""


def state_file(folder: Path, name: str) -> Path:
    """Return the file that says what a logger was told.

    Args:
        folder: The run's folder.
        name: The logger.

    Returns:
        Its path.
    """
    return folder / f"{name}.json"


@dataclass
class Told:
    """What a logger was told of a run, to resume without a gap, and without a step twice.

    Attributes:
        run_id: What the logger calls the run.
        evaluation: Step of the last evaluation.
        snapshot: Step of the last snapshot.
        finished: Whether it was told all.
    """

    run_id: str | None = None
    evaluation: int = -1
    snapshot: int = -1
    finished: bool = False

    @classmethod
    def read(cls, folder: Path, name: str) -> Self:
        """Read it; a logger without such a file was told nothing.

        Args:
            folder: The run's folder.
            name: The logger.

        Returns:
            What is known.
        """
        try:
            return cls(**read_json(state_file(folder, name)))
        except (InputError, TypeError):
            return cls()


class Follower:
    """Tells a logger what it was not told yet.

    Args:
        run: The run.
    """

    def __init__(self, run: FollowedRun) -> None:
        self._run, self._told = run, Told.read(run.path, run.logger)
        module = import_module(f"condexp.results.loggers.{run.logger}")
        self._logger: Logger = module.Logger(run, self._told.run_id)
        self._told.run_id = self._logger.run_id
        self._save()

    def catch_up(self) -> None:
        """Tell what was committed since the last time."""
        stored = Run(self._run.path / FILE_NAME)
        if not stored.file.exists():
            return
        by_step: dict[int, dict[str, float]] = {}
        for step, numbers in (*self._evaluations(stored), *self._snapshots(stored)):
            by_step.setdefault(step, {}).update(numbers)
        for step in sorted(by_step):
            self._logger.log(step, {k: v for k, v in by_step[step].items() if np.isfinite(v)})
        if by_step:
            self._logger.flush()
            self._save()

    def end(self) -> None:
        """Tell the rest, and end the logger's run where the run has ended."""
        self.catch_up()
        status = read_status(self._run.path)
        if status.state in FINISHED:
            picture = self._run.path / PICTURE
            self._logger.finish(status.step, picture if picture.is_file() else None)
            self._told.finished = True
            self._save()
        else:
            self._logger.close()

    def _save(self) -> None:
        write_json(state_file(self._run.path, self._run.logger), asdict(self._told))

    def _evaluations(self, stored: Run) -> Iterator[tuple[int, dict[str, float]]]:
        metrics = stored.metrics
        made = metrics.loc[metrics["train_loss"].notna() | metrics["test_loss"].notna()]
        for step, row in made.loc[made.index > self._told.evaluation].iterrows():
            numbers = {name: float(row[name]) for name in (*METRICS, "epoch")}
            rates: pd.Series[float] = metrics["lr"]
            numbers["lr"] = float(rates.get(int(str(step)) - 1, np.nan))  # of the update before it
            self._told.evaluation = int(str(step))
            yield self._told.evaluation, numbers

    def _snapshots(self, stored: Run) -> Iterator[tuple[int, dict[str, float]]]:
        if not any(step > self._told.snapshot for step in stored.steps):
            return
        every = LayerMeasures.read(stored)
        types = [str(kind) for kind in every.arrays["type"]]
        layers = chosen_layers(self._run.layers, every.layers, types)
        matrices = (*every.matrices, *stored.curvature)
        measures = chosen_measures(self._run.measures, matrices, every.fractions)
        parts = [(every, [layer for layer in layers if layer != NETWORK])]
        if NETWORK in layers:
            parts.append((LayerMeasures.read_network(stored), [NETWORK]))
        found: dict[int, dict[str, float]] = {}
        for part, names in parts:
            for measure in (name for name in measures if name in part.measures):
                values, marks = part.values(measure), part.marks(measure)
                for row, step in enumerate(map(int, part.steps)):
                    numbers = found.setdefault(step, {})
                    for column in map(part.layers.index, names):
                        name = _name(part.layers[column], measure, marks[row, column])
                        if name is not None:
                            numbers[name] = float(values[row, column])
        for step, numbers in sorted(found.items()):
            if step > self._told.snapshot:
                self._told.snapshot = step
                yield step, numbers


def _name(layer: str, measure: str, mark: Mark) -> str | None:
    """Return how a number is called; None where it is none."""
    suffixes = {Mark.NONE: "", Mark.AT_LEAST: AT_LEAST, Mark.ESTIMATED: "_estimated"}
    return f"{layer}/{measure}{suffixes[mark]}" if mark in suffixes else None


def without_secrets(text: str) -> str:
    """Take credentials out of a message: those of an address, and values of variables named so.

    Args:
        text: What a logger said.

    Returns:
        One line.
    """
    text = re.sub(r"//[^/\s@]+@", "//…@", visible(" ".join(text.split())))
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) > 5:
            text = text.replace(value, "…")
    return text


def main() -> int:
    """Follow the run that standard input describes.

    Returns:
        0; 1 where the logger failed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the run is stopped, and then ends standard input
    channel = int(sys.argv[1])
    os.set_inheritable(channel, False)
    with open(0, "rb", buffering=0, closefd=False) as standard_input:
        run = FollowedRun.from_json(standard_input.readline())
    try:
        follower = Follower(run)
        while os.read(0, 1 << 16):
            follower.catch_up()
        follower.end()
    except BaseException as error:  # a logger's exit is its own
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        os.write(channel, without_secrets(said)[:2000].encode(errors="replace"))
        return 1
    return 0
