"""Whether a run that says it is finished has the rows of a finished run."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from condexp.errors import InputError
from condexp.store.disk import ResultsError
from condexp.store.hdf5.checked_file import Trailer
from condexp.store.hdf5.open import open_file
from condexp.store.hdf5.validate import validate_results
from condexp.store.run_folder.status import FINISHED, State, Status, find_runs, read_status
from condexp.store.schema.fields import Axis
from condexp.store.schema.layout import COUNTERS, FILE_NAME, STEPS


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
    if not path.is_file():
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
    return replace(status, state=State.FAILED, error=error)


def read_statuses(paths: Iterable[str | Path]) -> dict[Path, Status]:
    """Read the status of every run below some folders.

    Args:
        paths: Run folders, or folders that hold run folders at any depth.

    Returns:
        Status by run folder, in the order of the folders' names.
    """
    return {folder: _read(folder) for folder in find_runs(paths)}


def _read(folder: Path) -> Status:
    try:
        return read_checked_status(folder)
    except InputError as damage:  # one run's damage must not hide the others
        return Status(State.FAILED, error=str(damage))


def _rows(path: Path) -> tuple[dict[Axis, int], dict[Axis, int]]:
    """Return the rows that are committed, and those that are scheduled."""
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
