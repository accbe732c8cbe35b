"""``condexp status`` and ``condexp table`` over many runs, against reading their files by hand."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import yaml

from benchmarks.commands import quietly
from benchmarks.timing import Measurement, alternate

NUM_RUNS = 200
RUN = ["trainer.steps=2", "model.depth=3", "model.width=8", "analysis.schedule.log_spaced=2"]
TABLE = ["--rows", "model.depth", "--cols", "model.last_bn", "--paired", "model.last_bn"]
MEASURE = "last_linear.input_kappa_0.5"
# Twice what was measured: most of it is laying out a row, and making a frame.
TARGETS = {"status": 40.0, "table": 5.0}


def measure(num_pairs: int) -> list[Measurement]:
    """Time each command and its reference in turn.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds for a run.
    """
    with tempfile.TemporaryDirectory() as root:
        folders = _runs(Path(root))
        grid = str(folders[0].parent)
        ways = {
            "status": (["status", grid], _read_statuses(folders)),
            "table": (["table", grid, *TABLE, "--value", MEASURE], _read_results(folders)),
        }
        measurements = []
        for name, (command, by_hand) in ways.items():
            times = alternate(quietly(command), by_hand, num_pairs)
            ours, reference = (tuple(seconds / NUM_RUNS for seconds in side) for side in times)
            title = f"{name} of {NUM_RUNS} runs, each"
            measurements.append(Measurement(title, ours, reference, TARGETS[name]))
    return measurements


def _runs(root: Path) -> list[Path]:
    """Return the folders of runs: one is run, the others are copies with other configurations."""
    quietly(["run", *RUN, f"run.root={root / 'one'}"])()
    (original,) = (root / "one" / "default").iterdir()
    config = yaml.safe_load((original / "config.yaml").read_text())
    folders = []
    for index in range(NUM_RUNS):
        folder = root / "grid" / f"mlp-digits-s{index}"
        shutil.copytree(original, folder)
        config["seed"] = index // 4
        config["model"] |= {"depth": 3 + index % 2, "last_bn": index % 4 > 1}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        folders.append(folder)
    return folders


def _read_statuses(folders: list[Path]) -> Callable[[], None]:
    def read() -> None:
        for folder in folders:
            json.loads((folder / "status.json").read_text())

    return read


def _read_results(folders: list[Path]) -> Callable[[], None]:
    def read() -> None:
        for folder in folders:
            yaml.load((folder / "config.yaml").read_text(), Loader=yaml.CSafeLoader)
            with h5py.File(folder / "results.h5", "r", locking=False) as file:
                num = int(file["n_committed"][()])
                for name in ("layer", "input_kappa", "p", "num_rows"):
                    file["layers"][name][num - 1 if name == "input_kappa" else slice(None)]

    return read
