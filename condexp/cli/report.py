"""``condexp report DIR…``: a run, a sweep or the paper as one page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from condexp.cli.parsing import add_where, make_parser
from condexp.errors import InputError, choose, near_path

FORMATS = ("html", "markdown")
SUFFIXES = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown"}


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    folders: Sequence[Path]
    where: Sequence[str]
    form: str | None
    output: Path | None


def run(args: list[str]) -> int:
    """Write the page, and print where it is.

    Args:
        args: The command line after the verb.

    Returns:
        0; with ``--watch`` 1 where the run ended unfinished.
    """
    parser = make_parser("report", "a run, a sweep, or the paper's tables and claims, as one page")
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run; folders of runs; or what holds the paper's table1, fig_validation, …",
    )
    add_where(parser)
    parser.add_argument(
        "--format",
        metavar="html|markdown",
        help="html is one file that needs no network, made with the extra 'report'; markdown is of "
        "the paper alone (default: as FILE is called, else markdown for the paper, html otherwise)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html in DIR, or REPORT.md)",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="write the HTML page of a running run anew at each snapshot, until the run ends",
    )
    options = parser.parse_args(args)
    form = None if options.format is None else choose("format", options.format, FORMATS)
    if form is None and options.output is not None:
        form = SUFFIXES.get(options.output.suffix.lower())
    wanted = Wanted(options.folders, options.where, form, options.output)
    if options.watch:
        return _watch(wanted)
    from condexp.results.console import say

    say(f"wrote {_write(wanted)}")
    return 0


def _write(wanted: Wanted) -> Path:
    """Return the page that these folders get, written.

    Raises:
        InputError: If they have none of the format asked for.
    """
    from condexp.results.page.write import is_run, write_grid_page, write_paper_page, write_run_page
    from condexp.results.report import EXPERIMENTS, write_report

    folders, where, output = wanted.folders, wanted.where, wanted.output
    for folder in folders:
        if not folder.exists():
            raise InputError(f"there is no folder {folder}.{near_path(folder)}")
    first = folders[0]
    one_run = len(folders) == 1 and is_run(first)
    paper = len(folders) == 1 and any((first / name).is_dir() for name in EXPERIMENTS)
    if wanted.form == "markdown" and (one_run or len(folders) > 1):
        raise InputError(
            "report: markdown is of the paper's folder alone; give --format html for the page of a "
            "run or of a sweep."
        )
    if wanted.form == "markdown" or (paper and wanted.form is None):
        return write_report(first, where, output)
    if one_run and where:
        raise InputError(f"report: --where chooses among runs, and {first} is one: leave it out.")
    if one_run:
        return write_run_page(first, output)
    return (
        write_paper_page(first, where, output) if paper else write_grid_page(folders, where, output)
    )


def _watch(wanted: Wanted) -> int:
    """Write the page of a run at each snapshot, until the run ends.

    Returns:
        0 where it is finished, else 1.

    Raises:
        InputError: If something else than a run's HTML page is asked for.
    """
    from condexp.results.console import say
    from condexp.results.live import follow
    from condexp.results.page.write import write_run_page

    if len(wanted.folders) > 1 or wanted.where or wanted.form == "markdown":
        raise InputError("report: --watch is for the HTML page of one run, without --where.")
    (path,), num_snapshots = wanted.folders, None
    for look in follow(path, time.sleep):
        # Metrics alone are no reason to write two megabytes.
        if look.run is None or (look.num_snapshots == num_snapshots and look.goes_on):
            continue
        num_snapshots = look.num_snapshots
        page = write_run_page(path, wanted.output)
        say(f"wrote {page}: {num_snapshots} snapshots, {look.last_word}")
    return int(not look.finished)
