"""The table of ``condexp status``: where each run stands."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from condexp.errors import InputError
from condexp.results.marks import format_number
from condexp.store.runs import State, Status, find_runs, read_status

STATE_STYLES = {
    State.PENDING: "dim",
    State.RUNNING: "cyan",
    State.INTERRUPTED: "yellow",
    State.FAILED: "bold red",
    State.DIVERGED: "magenta",
    State.COMPLETE: "green",
}


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
        return read_status(folder)
    except InputError as damage:  # one run's damage must not hide the others
        return Status(State.FAILED, error=str(damage))


def status_table(statuses: Mapping[Path, Status]) -> Table:
    """Lay out one row a run: state, step, test error, time, and why it failed.

    Args:
        statuses: Status by run folder.

    Returns:
        A table for the console; its caption counts the runs of each state.
    """
    table = Table(
        caption=_count(statuses.values()), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for header in ("step", "test error %", "best", "time"):
        table.add_column(header, justify="right", no_wrap=True)
    remarks = any(status.error for status in statuses.values())
    if remarks:
        table.add_column("error", overflow="fold")
    for folder, status in statuses.items():
        table.add_row(
            Text(str(folder)),
            Text(status.state.value, style=STATE_STYLES[status.state]),
            f"{status.step}/{status.num_steps}",
            format_number(_number(status.test_error)),
            format_number(_number(status.best_test_error)),
            format_seconds(status.seconds),
            *([Text(status.error or "")] if remarks else []),
        )
    return table


def format_seconds(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    Args:
        seconds: The duration.

    Returns:
        For example ``"0:01:23"``.
    """
    return str(timedelta(seconds=round(seconds)))


def _count(statuses: Iterable[Status]) -> str:
    states = [status.state for status in statuses]
    parts = [f"{states.count(state)} {state}" for state in State if state in states]
    return f"{len(states)} run{'s' * (len(states) != 1)}: {', '.join(parts)}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
