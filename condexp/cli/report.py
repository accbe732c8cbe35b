"""``condexp report ROOT``: the paper's tables, figures and verdicts as one page."""

from pathlib import Path

from condexp.cli.parsing import add_where, make_parser


def run(args: list[str]) -> int:
    """Write the page, and print where it is.

    Args:
        args: The command line after the verb.

    Returns:
        0.
    """
    parser = make_parser(
        "report", "the paper's tables, figures and claims with their verdicts as one page"
    )
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="what holds table1, fig_validation, … (outputs)"
    )
    add_where(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: REPORT.md in ROOT)"
    )
    options = parser.parse_args(args)
    from condexp.results.console import say
    from condexp.results.report import write_report

    page = write_report(options.root, options.where, options.output)
    say(f"wrote {page}")
    return 0
