"""``condexp export FILE``: every number of a run as CSV in long form."""

import sys
from pathlib import Path

from condexp.cli.parsing import make_parser


def run(args: list[str]) -> int:
    """Print every number of a run as CSV, or write it to a file.

    Args:
        args: The command line after the verb.

    Returns:
        0.
    """
    parser = make_parser(
        "export",
        "every number of a run as CSV: step, epoch, layer, measure, p, value. Losses and errors "
        "have no layer; kappa has a p; a status is 1 ok, 2 zero, 3 unreliable, 4 nonfinite, "
        "5 incomplete",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="results.h5 or a run folder")
    parser.add_argument("--output", type=Path, metavar="CSV", help="default: standard output")
    parser.add_argument(
        "--spectra",
        action="store_true",
        help="also the eigenvalues, numbered in a column eig; of hessian and ggn their errors, and "
        "the density by point, in units of density_scale",
    )
    options = parser.parse_args(args)
    from condexp.results.console import say
    from condexp.store.export import save_csv, write_csv
    from condexp.store.reader import open_run

    stored = open_run(options.file)
    if options.output is None:
        write_csv(stored, sys.stdout, spectra=options.spectra)
    else:
        save_csv(stored, options.output, spectra=options.spectra)
        say(f"wrote {options.output}")
    return 0
