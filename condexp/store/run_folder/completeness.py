"""Whether a run that says it is finished has the rows of a finished run."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from condexp.errors import InputError
from condexp.store.disk import ResultsError
from condexp.store.hdf5.checked_file import Trailer
from condexp.store.hdf5.open import open_file
from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.config_file import read_config
from condexp.store.run_folder.identity import identity_hash
from condexp.store.run_folder.status import (
    CONFIG_NAME,
    FINISHED,
    State,
    Status,
    find_runs,
    read_status,
)
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import COUNTERS, FILE_NAME, STEPS

logger = logging.getLogger("condexp")


class Unreadable(Status):
    """What stands for a status that cannot be read: one run's damage must not hide the others."""


class Lost(Status):
    """What stands for the status of a run that says it is finished, and whose results are not."""


def check_finished(path: Path, expected: Mapping[Axis, int]) -> None:
    """Make sure that a results file holds all rows of a run, and that they are undamaged.

    Args:
        path: The file.
        expected: The rows.

    Raises:
        ResultsError: If it does not: the run is not finished.
    """
    problems = validate_results(path)
    if not problems:
        committed, _ = _rows(path)
        if committed != expected:
            problems = [f"it holds {_describe(committed)}, not {_describe(expected)}"]
    if problems:
        raise ResultsError(f"{path} is not the whole run: {problems[0]}. The run is not finished.")


def missing_results(folder: Path, status: Status) -> str | None:
    """Say why a run that is said to be finished is not.

    Args:
        folder: The run's folder.
        status: Its status.

    Returns:
        What is wrong with its results file; None where all is well, or the run is not finished.
    """
    if status.state not in FINISHED:
        return None
    path = folder / FILE_NAME
    if not os.path.lexists(path):
        return f"{FILE_NAME} is missing"
    try:
        committed, scheduled = _rows(path)
    # A damaged file can make HDF5 fail in any way.
    except Exception as error:
        return str(error)
    if status.state is State.COMPLETE and committed != scheduled:
        return f"{FILE_NAME} holds {_describe(committed)} of {_describe(scheduled)}"
    return None


def read_checked_status(folder: Path) -> Status:
    """Read the status of a run; one that says it is finished is believed if its results say so.

    Args:
        folder: The run's folder.

    Returns:
        The status; failed, with the reason, where results are missing.

    Raises:
        InputError: If there is none, or it is no status.
    """
    status = read_status(folder)
    lost = missing_results(folder, status)
    if lost is None:
        return status
    error = f"said to be {status.state}, but {lost}; the same command resumes it"
    return Lost(**vars(status) | {"state": State.FAILED, "error": error})


def read_statuses(paths: Iterable[str | Path]) -> dict[Path, Status]:
    """Read the status of every run below some folders.

    A run that was copied, as a backup say, is there once: as the copy that is furthest. The log
    names the others.

    Args:
        paths: Run folders, or folders that hold run folders at any depth.

    Returns:
        Status by run folder, in the order of the folders' names; `Unreadable` where it is damaged.
    """
    statuses = {folder: _read(folder) for folder in find_runs(paths)}
    begun: dict[str, list[Path]] = {}
    for folder, status in statuses.items():
        begun.setdefault(status.started, []).append(folder)
    for started, folders in begun.items():
        if started and len(folders) > 1:
            for copy, original in _copies(folders, statuses):
                logger.warning("%s is a copy of %s: the run counts once", copy, original)
                del statuses[copy]
    return statuses


def _copies(folders: list[Path], statuses: Mapping[Path, Status]) -> Iterator[tuple[Path, Path]]:
    """Yield the copies among runs that were started in the same second, and what they copy."""
    originals: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda each: -statuses[each].step):
        try:
            identity = identity_hash(read_config(folder / CONFIG_NAME))
        except InputError:
            continue
        original = originals.setdefault(identity, folder)
        if original is not folder:
            yield folder, original


def _read(folder: Path) -> Status:
    try:
        return read_checked_status(folder)
    except InputError as damage:
        return Unreadable(State.FAILED, error=str(damage))


def _rows(path: Path) -> tuple[dict[Axis, int], dict[Axis, int]]:
    """Return the rows that are committed, and those that are scheduled."""
    found = path.stat()
    return _rows_of_version(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 14)  # a command may ask twice, of thousands of runs
def _rows_of_version(path: Path, *_version: int) -> tuple[dict[Axis, int], dict[Axis, int]]:
    # The end of a sealed file tells at once: there may be thousands of runs.
    trailer = Trailer.read(path)
    if trailer is not None and trailer.committed is not None:
        return dict(trailer.committed), dict(trailer.scheduled)
    with open_file(path) as file:
        committed = {axis: int(file[COUNTERS[axis]][()]) for axis in Axis}
        return committed, {axis: len(file[STEPS[axis]]) for axis in Axis}


def _describe(rows: Mapping[Axis, int]) -> str:
    return (
        f"{rows[Axis.SNAPSHOT]} snapshots, {rows[Axis.TRAIN]} training steps and "
        f"{rows[Axis.EVAL]} evaluations"
    )
