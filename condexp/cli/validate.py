"""``condexp validate FILE``: a results file against its schema and its checksums."""

import os
from pathlib import Path

from condexp.cli.parsing import make_parser
from condexp.errors import InputError


def run(args: list[str]) -> int:
    """Check a results file, and print what is wrong with it.

    Args:
        args: The command line after the verb.

    Returns:
        1 if anything is wrong, else 0.

    Raises:
        InputError: If there is no such file.
    """
    parser = make_parser("validate", "check a results file against schema and checksums")
    parser.add_argument("file", type=Path, metavar="FILE", help="results.h5 or a run folder")
    path: Path = parser.parse_args(args).file
    from condexp.results.console import make_console
    from condexp.store.hdf5.validate import validate_results
    from condexp.store.schema.layout import FILE_NAME

    path = path / FILE_NAME if path.is_dir() else path
    if not os.path.lexists(path):
        raise InputError(f"there is no results file {path}.")
    problems = validate_results(path)
    for problem in problems or ["valid"]:
        make_console().print(f"{path}: {problem}", markup=False, soft_wrap=True)
    return int(bool(problems))
