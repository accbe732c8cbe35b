"""``condexp show RUN``: the setting, the metrics and the layers of one run, finished or not."""

from pathlib import Path

from condexp.cli.parsing import make_parser


def run(args: list[str]) -> int:
    """Print a stored run.

    Args:
        args: The command line after the verb.

    Returns:
        0.
    """
    parser = make_parser("show", "a finished or running run: setting, metrics, layers")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or results.h5")
    parser.add_argument("--step", type=int, help="the snapshot to show (default: the last)")
    parser.add_argument(
        "--measure", action="append", metavar="NAME", help="show this measure instead; repeatable"
    )
    parser.add_argument(
        "--p", type=float, help="show κ at this fraction; computed from spectra that were saved"
    )
    parser.add_argument(
        "--sort", metavar="NAME", help="the largest of this measure first, as kfac_kappa_0.5"
    )
    parser.add_argument("--top", type=int, metavar="N", help="only the first N layers")
    options = parser.parse_args(args)
    from condexp.results.console import show
    from condexp.results.run_view import layer_table, summary
    from condexp.store.reader import open_run

    stored = open_run(options.run)
    layers = layer_table(
        stored, options.step, options.measure, options.p, options.sort, options.top
    )
    show(summary(stored), layers)
    return 0
