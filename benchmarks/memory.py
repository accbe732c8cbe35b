"""The peak memory of a step with a snapshot against one without: a process for each."""

import json
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.networks import Network, Training, resnet, vgg
from benchmarks.snapshot import riding
from benchmarks.timing import Measurement
from condexp.analysis.options import AnalysisOptions

TARGET = 1.3
NETWORKS = {n.name: n for n in (vgg(), resnet(110), resnet(1202, batch=32))}
NUM_STEPS = 2


def measure(_num_rounds: int) -> list[Measurement]:
    """Run each network in a process of its own, with and without snapshots.

    Returns:
        Peak bytes beyond those of the process before its first step, the model loaded.
    """
    found = []
    for name, network in NETWORKS.items():
        with_snapshot, without = (_peak(name, what) for what in ("snapshot", "step"))
        title = f"peak memory in MB: {name}, batch {network.batch}"
        found.append(Measurement(title, (with_snapshot,), (without,), TARGET))
    return found


def _peak(name: str, what: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", name, what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["peak_bytes"]) / 1e9  # the table shows thousandths


def _run(network: Network, what: str) -> int:
    training = Training(network)
    before = _resident()
    run = training.step if what == "step" else riding(training, AnalysisOptions())
    for _ in range(NUM_STEPS):
        run()
    return _resident() - before


def _resident() -> int:
    """Return the largest resident size so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's would begin with that of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


if __name__ == "__main__":
    print(json.dumps({"peak_bytes": _run(NETWORKS[sys.argv[1]], sys.argv[2])}))
