"""The look between two updates, whether to save or to stop, against a small network's step."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from benchmarks.loop import BATCH, LR, by_hand
from benchmarks.timing import Measurement, alternate
from condexp.runs.checkpointer import Checkpointer, CheckpointSchedule
from condexp.runs.stop_signals import StopRequests
from condexp.store.hdf5.create import create_results
from condexp.store.hdf5.writer import ResultsWriter
from condexp.store.run_folder.checkpoints import RunFingerprint
from condexp.store.schema.layout import FileSpec
from tests.from_conf import build, load

TARGET = 0.01
NUM_PAUSES, NUM_STEPS = 1000, 20


def measure(num_pairs: int) -> list[Measurement]:
    """Time pauses that nothing is due in, and steps of the default MLP, in turn.

    Args:
        num_pairs: Number of pairs.

    Returns:
        Seconds of a pause and of a step.
    """
    digits = load("digits")
    model = build("mlp", digits.input_shape, 10, depth=6, width=64, norm="batch")
    with (
        tempfile.TemporaryDirectory() as folder,
        _checkpointer(Path(folder), model) as checkpointer,
    ):

        def pause() -> None:
            for _ in range(NUM_PAUSES):
                checkpointer.pause(1)

        ours, reference = alternate(pause, by_hand(model, digits, NUM_STEPS), num_pairs)
    pauses = tuple(seconds / NUM_PAUSES for seconds in ours)
    steps = tuple(seconds / NUM_STEPS for seconds in reference)
    return [Measurement(f"pause: MLP on digits, batch {BATCH}", pauses, steps, TARGET)]


@contextmanager
def _checkpointer(folder: Path, model: nn.Module) -> Iterator[Checkpointer]:
    """Make what a run has for its pauses; no checkpoint is due at step 1."""
    spec = FileSpec(
        layers=(),
        not_analysed=(),
        matrices=(),
        kappa_p=(),
        save_spectra=False,
        snapshot_steps=(),
        eval_steps=(),
        num_train_steps=10,
        steps_per_epoch=10,
        num_samples=BATCH,
        config_yaml="{}",
    )
    create_results(folder / "results.h5", spec)
    with ResultsWriter(folder / "results.h5") as writer:
        yield Checkpointer(
            folder,
            writer,
            model,
            torch.optim.SGD(model.parameters(), lr=LR),
            fingerprint=RunFingerprint("", ""),
            schedule=CheckpointSchedule(5, 1, spec.steps_per_epoch),
            stop=StopRequests(),
        )
