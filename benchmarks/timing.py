"""Fair timing on a machine that is not ours alone: alternating pairs, and minima."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Measurement:
    """Two ways to do the same, timed in turn.

    Attributes:
        name: What was measured.
        ours: Seconds of one unit of our way, one number a repetition.
        reference: Seconds of one unit of the other way.
        target: Largest ratio that is good enough; None where it is only told.
        beyond: Ours is the other and something more, whose cost alone is told.
    """

    name: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    target: float | None
    beyond: bool = False

    @property
    def ratio(self) -> float:
        """Minimum over minimum: noise only ever adds time."""
        return min(self.ours) / min(self.reference) - self.beyond

    @property
    def median(self) -> float:
        """The ratio of the medians."""
        return statistics.median(self.ours) / statistics.median(self.reference) - self.beyond

    @property
    def reached(self) -> bool:
        """Whether the ratio is good enough."""
        return self.target is None or self.ratio <= self.target


def alternate(
    ours: Callable[[], None], reference: Callable[[], None], num_pairs: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Time both functions in pairs, after one unmeasured call of each.

    The order within a pair swaps every time, so that a drift of the machine favours neither.

    Args:
        ours: One way; it returns when its work is done.
        reference: The other.
        num_pairs: Number of pairs.

    Returns:
        Seconds of each call of the one and of the other.
    """
    times = rounds({"ours": ours, "reference": reference}, num_pairs)
    return times["ours"], times["reference"]


def rounds(
    ways: Mapping[str, Callable[[], None]],
    num_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Time several ways in turn, after one unmeasured call of each.

    Args:
        ways: Each returns when its work is done.
        num_rounds: How often each is timed; every round begins with another one.
        clock: Gives seconds: those that pass, or ``time.process_time``, those of all its threads.

    Returns:
        Seconds of each call.
    """
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(num_rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            start = clock()
            ways[name]()
            times[name].append(clock() - start)
    return {name: tuple(seconds) for name, seconds in times.items()}


def table(measurements: Sequence[Measurement]) -> str:
    """Return one aligned line a measurement.

    Args:
        measurements: What to show.

    Returns:
        The lines, with a heading.
    """
    heads = (
        ("ours ms", 11),
        ("other ms", 11),
        ("ratio", 9),
        ("median", 9),
        ("target", 8),
        ("n", 5),
    )
    lines = [" " * 42 + "".join(f"{name:>{width}}" for name, width in heads)]
    for m in measurements:
        times = f"{m.name:42}{1e3 * min(m.ours):11.3f}{1e3 * min(m.reference):11.3f}"
        times += f"{m.ratio:9.4f}{m.median:9.4f}"
        target = "" if m.target is None else f"{m.target:.2f}"
        verdict = "" if m.target is None else "ok" if m.reached else "MISSED"
        lines.append(f"{times}{target:>8}{len(m.ours):5d}  {verdict}".rstrip())
    return "\n".join(lines)


def as_json(measurements: Sequence[Measurement]) -> dict[str, object]:
    """Return all numbers with the conditions they were measured under.

    Args:
        measurements: What was measured.

    Returns:
        Plain types, for a file.
    """
    return {
        "conditions": conditions(),
        "measurements": [
            asdict(m)
            | {"n": len(m.ours), "ratio": m.ratio, "median": m.median, "reached": m.reached}
            for m in measurements
        ],
    }


def conditions() -> dict[str, object]:
    """Return versions and hardware.

    Returns:
        Plain types, for a file.
    """
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }


def _processor() -> str:
    """Return the processor's name; Linux knows it from one file only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
