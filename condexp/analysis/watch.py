"""Tells whoever watches a measurement how far it is; a watcher may end it by an exception."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[str, int, int], None]
"""Given what is being done, how many of it are done, and how many there are."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher | None) -> Iterator[None]:
    """Let someone watch the measurements of a block.

    Args:
        watcher: Called between back-propagations and between layers; nobody where None.

    Yields:
        Nothing.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell(what: str, num_done: int, num: int) -> None:
    """Tell the watcher, if there is one.

    Args:
        what: What is being done.
        num_done: How many of it are done.
        num: How many there are.
    """
    if (watcher := _watcher.get()) is not None:
        watcher(what, num_done, num)
