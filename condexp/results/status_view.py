"""The table of ``condexp status``: the state of each run."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from condexp.errors import InputError
from condexp.results.config_keys import differences
from condexp.results.tables.fitted import Fitted
from condexp.results.tables.numbers import format_number, format_seconds
from condexp.store.run_folder.config_file import read_config
from condexp.store.run_folder.identity import identity_config
from condexp.store.run_folder.liveness import Liveness, describe_process, liveness_of
from condexp.store.run_folder.status import CONFIG_NAME, State, Status

FEW = 1_000  # runs: of more, reading their configurations would take longer than all the rest
STATE_STYLES = {
    State.PENDING: "dim",
    State.RUNNING: "cyan",
    State.INTERRUPTED: "yellow",
    State.FAILED: "bold red",
    State.DIVERGED: "magenta",
    State.COMPLETE: "green",
}


@dataclass(frozen=True)
class RunRow:
    """A run as its ``status.json`` and its process tell of it."""

    status: Status
    life: Liveness

    @property
    def label(self) -> str:
        """The state, as far as it is known: a process that was killed left ``running`` behind."""
        if self.life is Liveness.DEAD:
            return f"{State.INTERRUPTED} (stale)"
        silent = f" ({self.life})" if self.life is Liveness.SILENT else ""
        return f"{self.status.state}{silent}"

    @property
    def style(self) -> str:
        """The state's colour."""
        stale = self.life in {Liveness.DEAD, Liveness.SILENT}
        return STATE_STYLES[State.INTERRUPTED if stale else self.status.state]

    @property
    def remark(self) -> str:
        """Why it failed, or what became of its process."""
        where = describe_process(self.status)
        if self.life is Liveness.DEAD:
            return (
                f"{where} is gone, last heard of {self.status.updated}; the same command resumes it"
            )
        if self.life is Liveness.SILENT:
            return f"no word of {where} since {self.status.updated}"
        return self.status.error or ""


def status_table(statuses: Mapping[Path, Status]) -> RenderableType:
    """Lay out one row a run: state, step, error, time, why it failed, and of few how they differ.

    Args:
        statuses: Status by run folder.

    Returns:
        A table for the console; its caption counts the runs of each state.
    """
    rows = {
        folder: RunRow(status, liveness_of(folder, status)) for folder, status in statuses.items()
    }
    table = Table(
        caption=_count(rows.values()), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for header in ("step", "test error %", "best", "time"):
        table.add_column(header, justify="right")
    few = len(rows) <= FEW
    settings = differences([_setting(folder) for folder in rows]) if few else [""] * len(rows)
    if any(settings):
        table.add_column("differs in", overflow="fold")
    remarks = any(row.remark for row in rows.values())
    if remarks:
        table.add_column("error", overflow="fold")
    for (folder, row), setting in zip(rows.items(), settings, strict=True):
        status = row.status
        table.add_row(
            Text(str(folder)),
            Text(row.label, style=row.style),
            f"{status.step}/{status.num_steps}",
            format_number(_number(status.test_error)),
            format_number(_number(status.best_test_error)),
            format_seconds(status.seconds),
            *([Text(setting)] if any(settings) else []),
            *([Text(row.remark)] if remarks else []),
        )
    return Fitted(table)


def _setting(folder: Path) -> Mapping[str, Any]:
    """Return what decides a run's numbers, as far as it can be read."""
    try:
        return identity_config(read_config(folder / CONFIG_NAME))
    except InputError:
        return {}


def _count(rows: Iterable[RunRow]) -> str:
    counts = Counter(row.label for row in rows)
    order = [label for state in State for label in sorted(counts) if label.split()[0] == state]
    parts = [f"{counts[label]} {label}" for label in order]
    return f"{counts.total()} run{'s' * (counts.total() != 1)}: {', '.join(parts)}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
