"""Waiting for what another process or thread says: no test's verdict depends on the clock.

This is the only file of the tests that reads a clock or sleeps, which ``test_suite.py`` checks.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
# Ends a test that hangs, and decides nothing else: on a busy machine a second's work takes minutes.
GUARD_SECONDS = 600
POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], Found]) -> Found:
    """Ask again and again until there is an answer; the answer."""
    give_up = time.monotonic() + GUARD_SECONDS
    while not (found := condition()):
        assert time.monotonic() < give_up, f"not within {GUARD_SECONDS} s"
        time.sleep(POLL_SECONDS)
    return found


def wait_for_another_second() -> None:
    """Wait until clocks whose resolution is a second show another time."""
    now = int(time.time())
    wait_until(lambda: int(time.time()) > now)


def until_a_random_moment(moments: random.Random, most: float) -> None:
    """Let some time pass, so that a kill falls anywhere; no test may count on where it fell."""
    time.sleep(moments.uniform(0, most))


def lives(pid: int) -> bool:
    """Whether a process of this machine has not ended yet; one nobody has waited for has."""
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False
