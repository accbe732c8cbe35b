"""Processes that are forked from the test, so that they start at once, and may be killed."""

import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Run some work in a child process, and make sure that it is gone afterwards."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside torch's threads; the child uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            # Not sys.exit: nothing of pytest may run twice.
            os._exit(code)
    try:
        yield child
    finally:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def exit_code(child: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def without_privileges() -> Iterator[None]:
    """Give up what the superuser may, who may write everywhere; others have nothing to give up."""
    if os.geteuid() != 0:
        yield
        return
    # What other tests left behind is finalised with the rights it was made with.
    gc.collect()
    gc.disable()
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        gc.enable()
