"""How a fresh interpreter begins: a file ``types.py`` in the current folder is not Python's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# The same code in the new process as in this one, however this one found it. Python is started with
# -P, which leaves the current folder out.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); import {0}; sys.exit({0}.main())"
)
SAFE_PATH = "PYTHONSAFEPATH"  # what stands for -P in the interpreters that a library starts
OURS = "condexp"  # any value will do


@contextmanager
def python_started_safely() -> Iterator[None]:
    """Have libraries start Python without the current folder in front of its own modules.

    Yields:
        Nothing.
    """
    given = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = given or OURS
    try:
        yield
    finally:
        if given is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = given


def without_safe_path(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment in which the user's own scripts find their folder again.

    Args:
        environment: Of a library's process.

    Returns:
        The same without what :func:`python_started_safely` added.
    """
    return {k: v for k, v in environment.items() if (k, v) != (SAFE_PATH, OURS)}
