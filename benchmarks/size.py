"""Five thousand runs, and a run of a million steps: seconds against the most they may take."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.commands import quietly
from benchmarks.timing import Measurement, rounds
from condexp.store.disk import locked
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.config_file import read_config, write_config
from condexp.store.run_folder.status import read_status, write_status
from condexp.store.schema.layout import FileSpec
from condexp.training.events import StepRecord
from tests.memory import peak_kilobytes

NUM_RUNS, NUM_STEPS = 5_000, 1_000_000
RUN = ["trainer.steps=2", "model.depth=3", "model.width=8", "analysis.schedule.log_spaced=2"]
TABLE = ["--rows", "model.depth", "--cols", "model.last_bn"]
MEASURE = "last_linear.input_kappa_0.5"
SECONDS = {"status": 3.0, "table": 20.0, "create": 2.0}


def measure(num_pairs: int) -> list[Measurement]:
    """Time reading many runs, and writing a long one.

    Args:
        num_pairs: How often, at most twice: one round takes half a minute.

    Returns:
        Seconds against the most they may take; lines that say so have megabytes that the process
        grew by.
    """
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return [*_many_runs(Path(folder), min(num_pairs, 2)), *_long_run(Path(folder))]


def _many_runs(root: Path, num_rounds: int) -> list[Measurement]:
    _make_runs(root)
    grid = str(root / "grid")
    ways = {
        "status": quietly(["status", grid]),
        "table": quietly(["table", grid, *TABLE, "--value", MEASURE]),
    }
    measurements = []
    for name, way in ways.items():
        before = peak_kilobytes()
        times = rounds({name: way}, num_rounds)[name]
        limit = (SECONDS[name],)
        measurements += [
            Measurement(f"{name} of {NUM_RUNS} runs", times, limit, 1.0),
            Measurement(f"{name} of {NUM_RUNS} runs: MB", _gigabytes(before), (0.5,), 1.0),
        ]
    return measurements


def _make_runs(root: Path) -> None:
    """Make folders of runs: one is run, the others have its results and other configurations."""
    quietly(["run", *RUN, f"run.root={root / 'one'}"])()
    (original,) = (root / "one" / "default").iterdir()
    config, status = read_config(original / "config.yaml"), read_status(original)
    text = (original / "config.yaml").read_text().partition("\n")[2]
    for index in range(NUM_RUNS):
        folder = root / "grid" / f"mlp-digits-s{index}"
        folder.mkdir(parents=True)
        os.link(original / "results.h5", folder / "results.h5")
        changed = text.replace(f"seed: {config['seed']}\n", f"seed: {index // 4}\n")
        changed = changed.replace("depth: 3\n", f"depth: {3 + index % 2}\n")
        changed = changed.replace("last_bn: false\n", f"last_bn: {str(index % 4 > 1).lower()}\n")
        with locked(folder / "results.h5") as owner:
            write_config(folder / "config.yaml", changed, owner)
        write_status(folder, replace(status, started=f"run {index}"))


def _long_run(root: Path) -> list[Measurement]:
    """Time the beginning and the metrics of a long run, and reading them back."""
    spec = FileSpec(
        layers=(),
        not_analysed=(),
        matrices=(),
        kappa_p=(0.5,),
        save_spectra=False,
        snapshot_steps=(0,),
        eval_steps=tuple(range(1000, NUM_STEPS + 1, 1000)),
        num_train_steps=NUM_STEPS,
        steps_per_epoch=1000,
        num_samples=128,
        config_yaml="{}",
    )
    path = root / "results.h5"
    create = rounds({"create": lambda: create_results(path, spec)}, 2)["create"]
    losses = np.random.default_rng(0).random(NUM_STEPS)
    with ResultsWriter(path) as writer:
        writer.on_step(StepRecord(0, 1.0, 0.1))
        before = peak_kilobytes()
        for step in range(1, NUM_STEPS):
            writer.on_step(StepRecord(step, float(losses[step]), 0.1))
        grown = _gigabytes(before)
    title = f"a run of {NUM_STEPS} steps"
    return [
        Measurement(f"{title}: its file", create, (SECONDS["create"],), 1.0),
        Measurement(f"{title}: MB of its metrics", grown, (0.1,), 1.0),
    ]


def _gigabytes(before: int) -> tuple[float]:
    return ((peak_kilobytes() - before) * 1024 / 1e9,)  # the table shows thousandths
