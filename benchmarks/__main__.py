"""Run the benchmarks, print a table, keep the numbers."""

import argparse
import json
from pathlib import Path

from benchmarks import (
    append,
    fisher,
    loop,
    memory,
    patches,
    pause,
    ranks,
    reading,
    record,
    recorder,
    scaling,
    sharpness,
    size,
    snapshot,
    verifying,
)
from benchmarks.timing import as_json, conditions, table
from condexp.analysis.linalg.eigen import pin_threads

# In a process as a user's is; the others run as ``condexp run`` does, which pins torch's threads.
NOT_PINNED = {"recorder": recorder.measure}
BENCHMARKS = NOT_PINNED | {
    "loop": loop.measure,
    "pause": pause.measure,
    "record": record.measure,
    "append": append.measure,
    "snapshot": snapshot.measure,
    "patches": patches.measure,
    "fisher": fisher.measure,
    "scaling": scaling.measure,
    "sharpness": sharpness.measure,
    "memory": memory.measure,
    "ranks": ranks.measure,
    "reading": reading.measure,
    "verifying": verifying.measure,
    "size": size.measure,
}


def main() -> None:
    """Run the benchmarks that the command line names, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--pairs", type=int, default=9, help="alternating pairs (default 9)")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)}: allowed are {', '.join(BENCHMARKS)}")
    if arguments.pairs < 1:
        parser.error(f"--pairs is {arguments.pairs}: it must be at least 1")
    measurements = []
    for name in sorted(arguments.names or BENCHMARKS, key=lambda name: name not in NOT_PINNED):
        if name not in NOT_PINNED:
            pin_threads()
        measurements += BENCHMARKS[name](arguments.pairs)
    print("\n".join(f"{key:14}{value}" for key, value in conditions().items()))
    print(table(measurements))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(as_json(measurements), indent=2) + "\n")


if __name__ == "__main__":
    main()
