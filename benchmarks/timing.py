"""Fair timing on a machine that is not ours alone: alternating pairs, and minima."""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
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
    """

    name: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    target: float | None

    @property
    def ratio(self) -> float:
        """Minimum over minimum: noise only ever adds time."""
        return min(self.ours) / min(self.reference)

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
    ours()
    reference()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(num_pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (ours, reference)[which]()
            times[which].append(time.perf_counter() - start)
    return tuple(times[0]), tuple(times[1])


def table(measurements: Sequence[Measurement]) -> str:
    """Return one aligned line a measurement.

    Args:
        measurements: What to show.

    Returns:
        The lines, with a heading.
    """
    lines = [f"{'':36}{'ours ms':>10}{'other ms':>10}{'ratio':>9}{'target':>8}{'n':>6}"]
    for m in measurements:
        times = f"{m.name:36}{1e3 * min(m.ours):10.3f}{1e3 * min(m.reference):10.3f}{m.ratio:9.4f}"
        target = "" if m.target is None else f"{m.target:.2f}"
        verdict = "" if m.target is None else "ok" if m.reached else "MISSED"
        lines.append(f"{times}{target:>8}{len(m.ours):6d}  {verdict}".rstrip())
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
            asdict(m) | {"n": len(m.ours), "ratio": m.ratio, "reached": m.reached}
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
