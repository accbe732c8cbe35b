"""The tables of a sweep: what would be done with each job, and how each ended."""

from collections import Counter
from collections.abc import Sequence

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from condexp.results.status_view import STATE_STYLES
from condexp.results.tables.numbers import format_seconds
from condexp.runs.result import RunResult
from condexp.runs.sweep.plan import JobAction, PlannedJob, common_settings, own_settings
from condexp.store.run_folder.status import State

NAMES = {State.PENDING: "not started", State.RUNNING: "runs elsewhere"}


def plan_table(jobs: Sequence[PlannedJob]) -> Table:
    """Lay out what would be done with each job.

    Args:
        jobs: The plan.

    Returns:
        One row a job; its caption adds up what is to be run.
    """
    table = _table(jobs, f"{len(jobs)} job{'s' * (len(jobs) != 1)}; nothing is run", _total(jobs))
    for header in ("steps left", "time", "disk"):
        table.add_column(header, justify="right", no_wrap=True)
    for column in ("overrides", "folder"):
        table.add_column(column, overflow="fold")
    for job, own in zip(jobs, own_settings(jobs), strict=True):
        cost, result = job.cost, job.result
        remark = f": {result.message}" if result is not None and result.message else ""
        original = f" of job {job.original + 1}" if job.original is not None else ""
        table.add_row(
            str(job.number),
            Text(f"{job.todo}{original}"),
            f"{cost.steps_left} of {cost.num_steps}" if cost else "",
            _time(cost.seconds) if cost else "",
            decimal(cost.num_bytes) if cost else "",
            Text(own),
            Text(f"{job.folder}{remark}"),
        )
    return table


def result_table(jobs: Sequence[PlannedJob], results: Sequence[RunResult]) -> Table:
    """Lay out how each job ended.

    Args:
        jobs: The plan.
        results: How each ended.

    Returns:
        One row a job; its caption counts the jobs of each state.
    """
    names = [
        "cancelled" if result.cancelled else NAMES.get(result.state, str(result.state))
        for result in results
    ]
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names).items())
    table = _table(jobs, f"sweep of {len(jobs)} jobs", counts)
    for column in ("overrides", "result"):
        table.add_column(column, overflow="fold")
    rows = zip(jobs, results, names, own_settings(jobs), strict=True)
    for job, result, name, own in rows:
        state = Text(name, style=STATE_STYLES[result.state])
        state.append(" (stored)" if result.stored else "")
        where = Text(result.message if result.message and result.exit_code else str(result.folder))
        if job.original is not None:
            where = Text(f"the same as job {job.original + 1}: run once")
        table.add_row(str(job.number), state, Text(own), where)
    return table


def _table(jobs: Sequence[PlannedJob], title: str, summary: str) -> Table:
    common = common_settings(jobs)
    caption = "\n".join([summary, *([f"all: {common}"] if common else [])])
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("job", justify="right")
    table.add_column("state", overflow="fold")
    return table


def _total(jobs: Sequence[PlannedJob]) -> str:
    counts = Counter(job.todo for job in jobs)
    costs = [job.cost for job in jobs if job.cost is not None]
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    parts = [f"{counts[todo]} {todo}" for todo in JobAction if counts[todo]]
    time = f"{_time(sum(known))} one after another" if known else "time unknown"
    if known and len(known) < len(costs):
        time += f" for {len(known)} of {len(costs)}, the others unknown"
    disk = decimal(sum(cost.num_bytes for cost in costs))
    return "; ".join([", ".join(parts), *([time, f"disk up to {disk}"] if costs else [])])


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_seconds(seconds)
