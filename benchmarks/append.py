"""Committing a snapshot to the results file, against a training step of ResNet-20."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from torch import nn

from benchmarks.loop import BATCH, by_hand, random_images
from benchmarks.timing import Measurement, alternate
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers import trace_layers
from condexp.analysis.options import AnalysisOptions, Matrix
from condexp.analysis.snapshot import Snapshot
from condexp.data.dataset import Dataset
from condexp.data.loaders import Batches
from condexp.models.resnet import build_resnet
from condexp.store.create import create_results
from condexp.store.layout import FileSpec
from condexp.store.writer import Durability, ResultsWriter
from condexp.training.events import SnapshotRecord

TARGET = 0.01
OPTIONS = AnalysisOptions(matrices=tuple(Matrix))


def measure(num_pairs: int) -> list[Measurement]:
    """Time an append and a step in turn.

    The snapshot's measures are worked out when they are appended, so they count; how much of that
    is the condition numbers of ``kfac`` shows in the line without them, which writes as many bytes.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds of an append and of a step.
    """
    data = random_images(2 * BATCH)
    model = build_resnet((3, 32, 32), 10, depth=20)
    snapshot, spec = _snapshot(model, data, num_pairs + 1)
    no_kfac = replace(
        snapshot, records=tuple(replace(record, kfac=None) for record in snapshot.records)
    )
    cases = {
        "append: durability=kill": (Durability.KILL, snapshot),
        "append: durability=power": (Durability.POWER, snapshot),
        "append: durability=kill, kfac empty": (Durability.KILL, no_kfac),
    }
    measurements = []
    # Not in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "results.h5"
        for name, (durability, given) in cases.items():
            create_results(path, spec)
            with ResultsWriter(path, durability) as writer:
                times = alternate(
                    _append(writer, given), by_hand(model, data, num_steps=1), num_pairs
                )
            measurements.append(Measurement(name, *times, TARGET))
    return measurements


def _snapshot(model: nn.Module, data: Dataset, num_snapshots: int) -> tuple[Snapshot, FileSpec]:
    """Return every matrix of every layer on one batch, and a file with every spectrum."""
    batches = list(
        Batches(data.train, mean=data.mean, std=data.std, batch_size=BATCH, shuffle=True).epoch()
    )
    catalogue = trace_layers(model, batches[0][0], OPTIONS)
    spec = FileSpec(
        layers=catalogue.layers,
        not_analysed=catalogue.not_analysed,
        matrices=OPTIONS.matrices,
        kappa_p=OPTIONS.kappa_p,
        save_spectra=True,
        snapshot_steps=tuple(range(num_snapshots)),
        eval_steps=(num_snapshots,),
        num_train_steps=num_snapshots,
        steps_per_epoch=1,
        num_samples=BATCH,
        config_yaml="{}",
    )
    return analyze_batches(model, nn.CrossEntropyLoss(), batches[:1], OPTIONS), spec


def _append(writer: ResultsWriter, snapshot: Snapshot) -> Callable[[], None]:
    steps = count()

    def append() -> None:
        step = next(steps)
        writer.on_snapshot(SnapshotRecord(step, float(step), snapshot))

    return append
