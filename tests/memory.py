"""Bounds on a process's memory; the only file of the tests that asks for its resources."""

import resource
from pathlib import Path


def peak_kilobytes() -> int:
    """The most memory that this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limit_growth(num_bytes: int) -> None:
    """Let this process take no more memory than it has by so much."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
