"""The one error a user can mend, and the look-up that suggests the nearest valid name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what was asked for: the command line prints its message and exits with 2."""


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """Say which allowed name is nearest, ready to append to a message.

    Args:
        given: The name that was not found.
        allowed: The valid names.

    Returns:
        ``" Did you mean 'x'?"``, or an empty string where nothing is near.
    """
    near = difflib.get_close_matches(given.lower(), map(str, allowed), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def choose(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return ``given`` if it is allowed.

    Args:
        what: What is being chosen, for the message (``"model"``).
        given: The name that was given.
        allowed: The valid names, in the order to print them.

    Returns:
        The name itself.

    Raises:
        InputError: If the name is not allowed; names the nearest valid one.

    >>> choose("model", "resnett", ["mlp", "resnet"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    condexp.errors.InputError: unknown model ...: allowed are mlp, resnet. Did you mean 'resnet'?
    """
    names = [str(name) for name in allowed]  # an enumeration prints as its value
    if given in names:
        return given
    raise InputError(
        f"unknown {what} {given!r}: allowed are {', '.join(names)}.{suggestion(given, names)}"
    )
