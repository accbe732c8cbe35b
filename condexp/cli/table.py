"""``condexp table DIR…``: mean ± std over the runs of each cell."""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from condexp.cli.parsing import add_where, comma_separated, make_parser
from condexp.errors import InputError, choose

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def _parse(args: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "table",
        "mean ± std (n) over the runs of each cell, geometric for condition numbers; in bold the "
        "lowest error, loss or condition number of a row that seed by seed is below all others",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument(
        "--rows",
        required=True,
        type=comma_separated,
        help="config keys or measures, comma-separated",
    )
    parser.add_argument(
        "--cols", default=[], type=comma_separated, help="the same, for the columns"
    )
    parser.add_argument("--value", default="test_error", help="what is averaged")
    add_where(parser)
    parser.add_argument(
        "--paired",
        metavar="KEY[=VALUE]",
        help="differences between the values of this key, paired by seed, with 95 %% intervals: "
        "against the first, or against VALUE",
    )
    parser.add_argument(
        "--published", action="store_true", help="published values, each under its own data's name"
    )
    parser.add_argument("--title", help="default: the value, the data and the epochs")
    parser.add_argument("--format", default="rich", help="rich, markdown, latex or csv")
    parser.add_argument(
        "--save", type=Path, metavar="STEM", help="write STEM.txt, .md, .tex and .csv as well"
    )
    return parser.parse_args(args)


def run(args: list[str]) -> int:
    """Print the mean over the runs of each cell, and save it where that is asked for.

    Args:
        args: The command line after the verb.

    Returns:
        0.

    Raises:
        InputError: If rows and columns share a key, or there are no rows.
    """
    options = _parse(args)
    from condexp.results.collect import collect
    from condexp.results.console import make_console
    from condexp.results.select import select
    from condexp.results.tables.differences import paired_key
    from condexp.results.tables.formats import SUFFIXES, Format, render
    from condexp.results.tables.table import make_table
    from condexp.store.files import saving

    choose("table format", options.format, list(Format))  # before a thousand runs are read
    rows, cols, paired, where = options.rows, options.cols, options.paired, options.where
    if not rows or set(rows) & set(cols):
        shared = ", ".join(sorted(set(rows) & set(cols)))
        what = f"--rows and --cols share {shared}" if shared else "--rows is empty"
        raise InputError(f"{what}: give keys for the rows, and others for the columns.")
    keys = [*rows, *cols, options.value, *([paired_key(paired)] if paired else [])]
    frame = collect(select(options.folders, where) if where else options.folders, keys)
    table = make_table(
        frame,
        rows,
        cols,
        options.value,
        title=options.title,
        paired=paired,
        published=options.published,
    )
    _print(make_console(), render(table, options.format))
    if options.save is not None:
        names = {kind: f"{options.save}.{suffix}" for kind, suffix in SUFFIXES.items()}
        for kind, name in names.items():
            text = io.StringIO()
            _print(make_console(text), render(table, kind))
            with saving(Path(name)) as file:
                file.write(text.getvalue().encode(errors="replace"))
        # Standard output may be the file that the table is wanted in.
        sys.stderr.write(f"wrote {', '.join(names.values())}\n")
    return 0


def _print(console: "Console", rendered: "RenderableType") -> None:
    text = isinstance(rendered, str)  # as it is, whatever it looks like
    console.print(rendered, soft_wrap=text, markup=not text, emoji=not text)
