"""The commands that read stored runs: their arguments, handed to what prints.

Nothing heavy is imported here, as in ``cli``: a command imports what it needs.
"""

import argparse
from pathlib import Path

FIGURE_NAMES = (
    "overview",
    "validation",
    "stability",
    "domination",
    "conditioning",
    "last_layer",
)


def make_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a command's arguments.

    Args:
        verb: The command.
        description: What it does.

    Returns:
        The parser, without arguments yet.
    """
    return argparse.ArgumentParser(prog=f"condexp {verb}", description=description)


def status(args: list[str]) -> int:
    """Show one row a run.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser("status", "one row a run; exits 1 if any failed")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    from condexp import console_stored

    return console_stored.show_status(parser.parse_args(args).folders)


def show(args: list[str]) -> int:
    """Show one run.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser("show", "a finished or running run: setting, metrics, layers")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or results.h5")
    parser.add_argument("--step", type=int, help="the snapshot to show (default: the last)")
    parser.add_argument(
        "--measure", action="append", metavar="NAME", help="show this measure instead; repeatable"
    )
    options = parser.parse_args(args)
    from condexp import console_stored

    return console_stored.show_run(options.run, options.step, options.measure)


def table(args: list[str]) -> int:
    """Average over the runs of each cell.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser(
        "table",
        "mean ± std (n) over the runs of each cell; the lowest error, loss or condition number of "
        "each row in bold",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--rows", required=True, help="config keys or measures, comma-separated")
    parser.add_argument("--cols", default="", help="the same, for the columns")
    parser.add_argument("--value", default="test_error", help="what is averaged")
    _add_where(parser)
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
    options = parser.parse_args(args)
    from condexp import console_stored

    return console_stored.show_table(
        options.folders,
        rows=_names(options.rows),
        cols=_names(options.cols),
        value=options.value,
        where=options.where,
        paired=options.paired,
        published=options.published,
        title=options.title,
        output_format=options.format,
        save=options.save,
    )


def figure(args: list[str]) -> int:
    """Draw a figure from stored runs.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser("figure", "a figure as PDF, PNG and the CSV it was drawn from")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(FIGURE_NAMES)}")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    _add_where(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to (default: beside the runs)"
    )
    parser.add_argument("--size", default="text", help="width: column (3.4 in) or text (7.2 in)")
    options = parser.parse_args(args)
    from condexp import console_stored

    return console_stored.draw_figure(
        options.name,
        options.folders,
        where=options.where,
        output=options.output,
        size=options.size,
    )


def report(args: list[str]) -> int:
    """Write the paper's tables, figures and verdicts as one page.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser(
        "report", "the paper's tables, figures and claims with their verdicts as one page"
    )
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="what holds table1, fig_validation, … (outputs)"
    )
    _add_where(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: REPORT.md in ROOT)"
    )
    options = parser.parse_args(args)
    from condexp import console_stored

    return console_stored.write_report(options.root, where=options.where, output=options.output)


def validate(args: list[str]) -> int:
    """Check a results file.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser("validate", "check a results file against schema and checksums")
    parser.add_argument("file", type=Path, metavar="FILE", help="results.h5 or a run folder")
    from condexp import console_stored

    return console_stored.validate_file(parser.parse_args(args).file)


def export(args: list[str]) -> int:
    """Write a run as CSV.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.
    """
    parser = make_parser(
        "export",
        "every number of a run as CSV: step, epoch, layer, measure, p, value. Losses and errors "
        "have no layer; kappa has a p; a status is 1 ok, 2 zero, 3 unreliable, 4 nonfinite",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="results.h5 or a run folder")
    parser.add_argument("--output", type=Path, metavar="CSV", help="default: standard output")
    parser.add_argument(
        "--spectra", action="store_true", help="also the eigenvalues, numbered in a column eig"
    )
    options = parser.parse_args(args)
    from condexp import console_stored

    return console_stored.export_run(options.file, options.output, spectra=options.spectra)


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="only the runs whose configuration has these values",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
