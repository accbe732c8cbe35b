"""``condexp status DIR…``: one row a run."""

from pathlib import Path

from condexp.cli.parsing import make_parser


def run(args: list[str]) -> int:
    """Print one row a run.

    Args:
        args: The command line after the verb.

    Returns:
        1 if any run failed, else 0.
    """
    parser = make_parser("status", "one row a run; exits 1 if any failed")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    options = parser.parse_args(args)
    from condexp.results.console import show
    from condexp.results.status_view import status_table
    from condexp.store.run_folder.completeness import read_statuses
    from condexp.store.run_folder.status import State

    statuses = read_statuses(options.folders)
    show(status_table(statuses))
    return int(any(status.state is State.FAILED for status in statuses.values()))
