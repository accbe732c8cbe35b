"""``condexp watch RUN``: a run that goes on, in the terminal."""

import time
from pathlib import Path

from condexp.cli.parsing import make_parser


def run(args: list[str]) -> int:
    """Show a run, and again whenever it has something new, until it ends.

    Args:
        args: The command line after the verb.

    Returns:
        0 where the run is complete, or diverged; 1 where it ended unfinished.
    """
    parser = make_parser(
        "watch",
        "a running run, refreshed until it ends: metrics, curves, time left, worst layers; exits 0 "
        "where the run finished, 1 where it failed or was stopped",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or results.h5")
    options = parser.parse_args(args)
    from condexp.results.console import show_live
    from condexp.results.live import follow
    from condexp.results.watch_view import watch_view

    last = show_live(follow(options.run, time.sleep), watch_view)
    return int(not last.finished)
