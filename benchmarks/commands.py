"""Commands as a user gives them, without what they print."""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

from condexp.cli.main import main


def quietly(command: Sequence[str]) -> Callable[[], None]:
    """Return a function that runs a command in this process.

    Args:
        command: Its words, without ``condexp``.

    Returns:
        The function; it fails with what was said where the exit code is not 0.
    """

    def call() -> None:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            code = main(command)
        assert code == 0, said.getvalue()

    return call
