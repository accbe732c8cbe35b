"""``condexp validate FILE``: a results file against its schema and its checksums."""

from pathlib import Path

from condexp.cli.parsing import make_parser


def run(args: list[str]) -> int:
    """Check a results file, and print what is wrong with it.

    Args:
        args: The command line after the verb.

    Returns:
        1 if anything is wrong, else 0.
    """
    parser = make_parser("validate", "check a results file against schema and checksums")
    parser.add_argument("file", type=Path, metavar="FILE", help="results.h5 or a run folder")
    path: Path = parser.parse_args(args).file
    from condexp.results.console import make_console
    from condexp.store.hdf5.validate import validate_results
    from condexp.store.run_folder.status import find_results

    path = find_results(path)
    problems = validate_results(path)
    for problem in problems or ["valid"]:
        make_console().print(f"{path}: {problem}", markup=False, soft_wrap=True)
    return int(bool(problems))
