"""What a person reads: the only place that prints. Tables come from ``results``.

What a command alone needs it imports itself: ``condexp status``, and a process that only waits for
a grid's job, need neither torch nor pandas.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from condexp.errors import InputError, choose
from condexp.job_result import JobResult
from condexp.results.status_table import read_statuses, status_table
from condexp.store.runs import State, find_runs

if TYPE_CHECKING:
    from condexp.prepare import Prepared

WIDE = 200  # columns where the output is a file or a pipe: nothing is cut


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence where the reader of a pipe went away: rich would end the run."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console(file: TextIO | None = None) -> Console:
    """A console for standard output, wide where that is no terminal.

    Args:
        file: Write there instead.

    Returns:
        The console.
    """
    console = _Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def say(text: str) -> None:
    """Print a line as it is, in place of the bar that a killed process may have left.

    Args:
        text: The line.
    """
    console = make_console()
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
    console.show_cursor()
    console.print(text, markup=False, soft_wrap=True)


def show(*parts: RenderableType) -> None:
    """Print tables and texts.

    Args:
        parts: One below the other.
    """
    console = make_console()
    for part in parts:
        console.print(part)


def show_layers(prepared: "Prepared") -> None:
    """Print what an experiment would measure, and what not.

    Args:
        prepared: The checked experiment.
    """
    from condexp.layers_report import layers_report

    show(*layers_report(prepared))


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
    from condexp.results.report import layer_table, summary
    from condexp.store.reader import open_run

    run = open_run(path)
    table = layer_table(run, step, measures)
    make_console().print(summary(run), table)
    return 0


def show_table(
    folders: Sequence[Path],
    *,
    rows: Sequence[str],
    cols: Sequence[str],
    value: str,
    output_format: str,
    save: Path | None,
) -> int:
    """Print mean ± std over the runs of each cell.

    Args:
        folders: Run folders, or folders of them.
        rows: Keys of the rows.
        cols: Keys of the columns.
        value: What is averaged.
        output_format: ``rich`` or ``markdown``.
        save: Also write ``<save>.txt`` and ``<save>.md``.

    Returns:
        0.
    """
    from condexp.results.collect import collect
    from condexp.results.tables import Format, make_table, render

    table = make_table(collect(folders, [*rows, *cols, value]), rows, cols, value)
    console = make_console()
    rendered = render(table, output_format)
    console.print(rendered, soft_wrap=isinstance(rendered, str), markup=False)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        with save.with_suffix(".txt").open("w", encoding="utf-8") as file:
            make_console(file).print(render(table, Format.RICH))
        save.with_suffix(".md").write_text(f"{render(table, Format.MARKDOWN)}\n", encoding="utf-8")
        console.print(f"wrote {save.with_suffix('.txt')} and {save.with_suffix('.md')}")
    return 0


def draw_figure(name: str, folders: Sequence[Path], output: Path | None) -> int:
    """Draw a figure from stored runs, and print what was written.

    Args:
        name: The figure's name.
        folders: The runs.
        output: Folder to write to; the run's own where None.

    Returns:
        0.
    """
    from condexp.results.figures import FIGURES
    from condexp.store.reader import open_run

    draw = FIGURES[choose("figure", name, FIGURES)]
    runs = find_runs(folders)
    for folder in runs:
        target = folder if output is None else output / folder.name if len(runs) > 1 else output
        for path in draw(open_run(folder), target):
            make_console().print(f"wrote {path}", soft_wrap=True)
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
    from condexp.store.layout import FILE_NAME
    from condexp.store.validate import validate_results

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
    from condexp.results.export import save_csv, write_csv
    from condexp.store.reader import open_run

    run = open_run(path)
    if output is None:
        write_csv(run, sys.stdout, spectra=spectra)
    else:
        save_csv(run, output, spectra=spectra)
        make_console().print(f"wrote {output}", soft_wrap=True)
    return 0


def show_result(result: JobResult) -> None:
    """Print what a run left: the table of its layers and where its files are.

    Args:
        result: How the run ended.
    """
    from condexp.results.report import layer_table, metrics_table
    from condexp.store.reader import open_run

    console = make_console()
    if result.state is State.FAILED or result.folder is None:
        log_file = result.folder and result.folder / "run.log"
        log = f"; more in {log_file}" if log_file and log_file.exists() else ""
        console.print(Text(f"failed: {result.message}{log}", style="red"))
        return
    run = open_run(result.folder)
    console.print(metrics_table(run), layer_table(run))
    verb = "stored already" if result.stored else "wrote"
    names = sorted(path.name for path in result.folder.iterdir() if path.suffix != ".lock")
    console.print(f"{result.state}; {verb}: {result.folder}/{{{', '.join(names)}}}", soft_wrap=True)
