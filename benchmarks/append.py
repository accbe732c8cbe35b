"""Committing a snapshot to the results file, against a training step of ResNet-20."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.loop import BATCH, by_hand, random_images
from benchmarks.timing import Measurement, alternate
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import LayerSnapshot, Snapshot
from condexp.analysis.vocabulary import WHOLE_MATRICES
from condexp.data.dataset import Dataset
from condexp.data.loaders import Batches
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.writer import Durability, ResultsWriter
from condexp.store.schema.layout import FileSpec
from condexp.training.events import SnapshotRecord
from tests.from_conf import build

TARGET = 0.01
OPTIONS = AnalysisOptions(matrices=WHOLE_MATRICES)


def measure(num_pairs: int) -> list[Measurement]:
    """Time an append and a step in turn.

    A spectrum works a measure out when it is first read, and keeps it: a part of a snapshot's own
    cost, shown in the line with fresh snapshots. The lines with a target time the store alone.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds of an append and of a step.
    """
    data = random_images(2 * BATCH)
    model = build("resnet", (3, 32, 32), 10, depth=20)
    snapshot, spec = _snapshot(model, data, num_pairs + 1)
    cases = {
        "append: durability=kill": (Durability.KILL, repeat(snapshot), TARGET),
        "append: durability=power": (Durability.POWER, repeat(snapshot), None),
        "append and its measures": (Durability.KILL, _fresh(snapshot, num_pairs + 1), None),
    }
    measurements = []
    # Not in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "results.h5"
        for name, (durability, given, target) in cases.items():
            create_results(path, spec)
            with ResultsWriter(path, durability) as writer:
                times = alternate(
                    _append(writer, given), by_hand(model, data, num_steps=1), num_pairs
                )
            measurements.append(Measurement(name, *times, target))
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


def _fresh(snapshot: Snapshot, number: int) -> Iterator[Snapshot]:
    """Return copies that have worked out none of their measures yet, made before any is timed."""

    def copy(record: LayerSnapshot) -> LayerSnapshot:
        spectra: dict[str, Any] = {
            matrix: replace(getattr(record, matrix)) for matrix in OPTIONS.matrices
        }
        spectra["kfac"] = KroneckerSpectrum(spectra["input"], spectra["grad_output"])
        return replace(record, **spectra)

    copies = [replace(snapshot, records=tuple(map(copy, snapshot.records))) for _ in range(number)]
    return iter(copies)


def _append(writer: ResultsWriter, snapshots: Iterator[Snapshot]) -> Callable[[], None]:
    steps = count()

    def append() -> None:
        step = next(steps)
        writer.on_snapshot(SnapshotRecord(step, float(step), next(snapshots)))

    return append
