"""``condexp figure NAME DIR…``: a figure as PDF, PNG, SVG and the CSV it was drawn from."""

from pathlib import Path

from condexp.cli.parsing import add_where, make_parser
from condexp.results.figures import NAMES


def run(args: list[str]) -> int:
    """Draw a figure from stored runs, and print what was written.

    Args:
        args: The command line after the verb.

    Returns:
        0.
    """
    parser = make_parser("figure", "a figure as PDF, PNG, SVG and the CSV it was drawn from")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    add_where(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to (default: beside the runs)"
    )
    parser.add_argument("--size", default="text", help="width: column (3.4 in) or text (7.2 in)")
    parser.add_argument("--layer", help="of spectrum (the last), density (all) and compare")
    parser.add_argument(
        "--matrix",
        help="of spectrum: input, weight, … (input); of density: hessian, ggn",
    )
    parser.add_argument("--measure", help="of compare: kfac_kappa_0.5 (default), test_error, …")
    options = parser.parse_args(args)
    chosen = {name: getattr(options, name) for name in ("layer", "matrix", "measure")}
    from condexp.results.console import say
    from condexp.results.figures.draw import draw

    drawn = draw(
        options.name,
        options.folders,
        where=options.where,
        output=options.output,
        size=options.size,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    for path in drawn.files:
        say(f"wrote {path}")
    for path in drawn.left_out:
        say(f"left out, as it has no number to draw: {path}")
    return 0
