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
    scaling,
    snapshot,
    verifying,
)
from benchmarks.timing import as_json, conditions, table
from condexp.analysis.linalg.eigen import pin_threads

BENCHMARKS = {
    "loop": loop.measure,
    "pause": pause.measure,
    "record": record.measure,
    "append": append.measure,
    "snapshot": snapshot.measure,
    "patches": patches.measure,
    "fisher": fisher.measure,
    "scaling": scaling.measure,
    "memory": memory.measure,
    "ranks": ranks.measure,
    "reading": reading.measure,
    "verifying": verifying.measure,
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
    pin_threads()  # as condexp run does
    measurements = []
    for name in arguments.names or BENCHMARKS:
        measurements += BENCHMARKS[name](arguments.pairs)
    print("\n".join(f"{key:14}{value}" for key, value in conditions().items()))
    print(table(measurements))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(as_json(measurements), indent=2) + "\n")


if __name__ == "__main__":
    main()
