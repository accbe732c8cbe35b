"""What a person reads of stored runs: one function for each command of ``cli_stored``.

What a command alone needs it imports itself: ``condexp status`` needs neither torch nor pandas.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from condexp.errors import InputError, choose
from condexp.results.console import make_console
from condexp.results.status_view import status_table
from condexp.store.run_folder.status import State, read_statuses


def show_status(folders: Sequence[Path]) -> int:
    """Print one row a run.

    Args:
        folders: Run folders, or folders of them.

    Returns:
        1 if any run failed.
    """
    statuses = read_statuses(folders)
    make_console().print(status_table(statuses))
    return int(any(status.state is State.FAILED for status in statuses.values()))


def show_run(path: Path, step: int | None, measures: Sequence[str] | None) -> int:
    """Print a stored run, finished or not.

    Args:
        path: The run folder or its results file.
        step: The snapshot to show; the last where None.
        measures: Names of measures to show instead of the overview.

    Returns:
        0.
    """
    from condexp.results.run_view import layer_table, summary
    from condexp.store.reader import open_run

    run = open_run(path)
    table = layer_table(run, step, measures)
    make_console().print(summary(run), table)
    return 0


def show_table(
    folders: Sequence[Path],
    *,
    rows: Sequence[str],
    cols: Sequence[str] = (),
    value: str = "test_error",
    where: Sequence[str] = (),
    paired: str | None = None,
    published: bool = False,
    title: str | None = None,
    output_format: str = "rich",
    save: Path | None = None,
) -> int:
    """Print mean ± std over the runs of each cell.

    Args:
        folders: Run folders, or folders of them.
        rows: Keys of the rows.
        cols: Keys of the columns.
        value: What is averaged.
        where: ``key=value`` of the runs that are wanted.
        paired: A key whose values are compared seed by seed, ``key`` or ``key=reference``.
        published: Whether to show published values beside.
        title: What to write above, in place of the value and the data.
        output_format: ``rich``, ``markdown``, ``latex`` or ``csv``.
        save: Also write all of them, to ``<save>.txt``, ``.md``, ``.tex`` and ``.csv``.

    Returns:
        0.
    """
    from condexp.results.collect import collect
    from condexp.results.select import select
    from condexp.results.tables.differences import paired_key
    from condexp.results.tables.formats import SUFFIXES, Format, render
    from condexp.results.tables.table import make_table

    choose("table format", output_format, list(Format))  # before a thousand runs are read
    keys = [*rows, *cols, value, *([paired_key(paired)] if paired else [])]
    frame = collect(select(folders, where) if where else folders, keys)
    table = make_table(frame, rows, cols, value, title=title, paired=paired, published=published)
    console = make_console()
    _print(console, render(table, output_format))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        names = {kind: f"{save}.{suffix}" for kind, suffix in SUFFIXES.items()}
        for kind, name in names.items():
            with Path(name).open("w", encoding="utf-8") as file:
                _print(make_console(file), render(table, kind))
        # Standard output may be the file that the table is wanted in.
        sys.stderr.write(f"wrote {', '.join(names.values())}\n")
    return 0


def _print(console: Console, rendered: RenderableType) -> None:
    text = isinstance(rendered, str)  # as it is, whatever it looks like
    console.print(rendered, soft_wrap=text, markup=not text, emoji=not text)


def draw_figure(
    name: str,
    folders: Sequence[Path],
    *,
    where: Sequence[str] = (),
    output: Path | None = None,
    size: str = "text",
) -> int:
    """Draw a figure from stored runs, and print what was written.

    Args:
        name: The figure's name.
        folders: Run folders, or folders of them.
        where: ``key=value`` of the runs that are wanted.
        output: Folder to write to; beside the runs where None.
        size: ``column`` or ``text``.

    Returns:
        0.
    """
    from condexp.results.figures.draw import draw

    console = make_console()
    drawn = draw(name, folders, where=where, output=output, size=size)
    for path in drawn.files:
        console.print(f"wrote {path}", soft_wrap=True)
    for path in drawn.left_out:
        console.print(f"left out, as it has no snapshot: {path}", soft_wrap=True)
    return 0


def write_report(root: Path, *, where: Sequence[str] = (), output: Path | None = None) -> int:
    """Write the paper's tables, figures and verdicts as one page, and print where.

    Args:
        root: The folder that holds a folder an experiment.
        where: ``key=value`` of the runs that are wanted.
        output: The page; ``REPORT.md`` in ``root`` where None.

    Returns:
        0.
    """
    from condexp.results import report as paper

    make_console().print(f"wrote {paper.write_report(root, where, output)}", soft_wrap=True)
    return 0


def validate_file(path: Path) -> int:
    """Check a results file, and print what is wrong with it.

    Args:
        path: The file, or its run folder.

    Returns:
        1 if anything is wrong.

    Raises:
        InputError: If there is no such file.
    """
    from condexp.store.hdf5.validate import validate_results
    from condexp.store.schema.layout import FILE_NAME

    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no results file {path}.")
    problems = validate_results(path)
    for problem in problems or ["valid"]:
        make_console().print(f"{path}: {problem}", markup=False, soft_wrap=True)
    return int(bool(problems))


def export_run(path: Path, output: Path | None, *, spectra: bool) -> int:
    """Print every number of a run as CSV, or write it to a file.

    Args:
        path: The run folder or its results file.
        output: The file; standard output where None.
        spectra: Whether eigenvalues are wanted too.

    Returns:
        0.
    """
    from condexp.store.export import save_csv, write_csv
    from condexp.store.reader import open_run

    run = open_run(path)
    if output is None:
        write_csv(run, sys.stdout, spectra=spectra)
    else:
        save_csv(run, output, spectra=spectra)
        make_console().print(f"wrote {output}", soft_wrap=True)
    return 0
