"""A fixed set of training samples on which the network is measured, beside the training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condexp.analysis.analyze import analyze_batches
from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.curvature.measure import Vectors
from condexp.analysis.curvature.sharpness import Sharpness
from condexp.analysis.measurement import Measurement
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.data.dataset import Dataset
from condexp.data.loaders import Batches
from condexp.errors import InputError
from condexp.models.sync_batchnorm import unsynchronised
from condexp.training.choices import ProbeMode
from condexp.training.evaluate import LossFunction
from condexp.training.seeding import make_generator


@dataclass(frozen=True)
class Probe:
    """Batches on which a network is measured again and again, merged into one snapshot.

    Attributes:
        batches: Inputs [N, …] and targets of each batch, on the model's device.
        mode: Whether BatchNorm takes each batch's own statistics, or the running ones.

    Raises:
        InputError: If there is no batch, or one of a single sample in train mode.
    """

    batches: Sequence[tuple[Tensor, Tensor]]
    mode: ProbeMode

    def __post_init__(self) -> None:
        if not self.batches:
            raise InputError("the probe holds no batch: give it at least one sample")
        if self.mode is ProbeMode.TRAIN and any(len(inputs) < 2 for inputs, _ in self.batches):
            raise InputError(
                "the probe has a batch of one sample, which has no batch statistics: choose"
                " probe.size and probe.batch_size so that none is left over, or probe.mode=eval"
            )

    def measure(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        options: AnalysisOptions,
        learning_rate: float | None = None,
        communicator: Communicator = SINGLE_PROCESS,
        start: Vectors | None = None,
    ) -> Snapshot:
        """Measure the model as it is now, and leave it exactly as found.

        Args:
            model: Modes, buffers, gradients and all random states are restored, also after an
                exception.
            loss_fn: Function ``loss_fn(outputs, targets) -> scalar``.
            options: What to measure.
            learning_rate: For ``effective_lr``; NaN without it.
            communicator: The processes that take turns at the batches; a batch and its statistics
                are one process's.
            start: Eigenvectors of an earlier snapshot, to start the next search from.

        Returns:
            One snapshot of all batches; of several processes, rank 0 has it.
        """
        with preserved_state(model), unsynchronised(model):
            model.train(self.mode is ProbeMode.TRAIN)
            return analyze_batches(
                model,
                loss_fn,
                self.batches,
                options,
                learning_rate=learning_rate,
                communicator=communicator,
                start=start,
            )

    def sharpness(
        self, model: nn.Module, loss_fn: LossFunction, options: AnalysisOptions, start: Vectors
    ) -> Sharpness:
        """Measure λ_max of the model's Hessian as it is now, and leave it exactly as found.

        Args:
            model: As for :meth:`measure`.
            loss_fn: Function ``loss_fn(outputs, targets) -> scalar``.
            options: ``network_precision`` and the limit of memory are read.
            start: Vectors of the last time.

        Returns:
            λ_max and its error.
        """
        with preserved_state(model):
            model.train(self.mode is ProbeMode.TRAIN)
            return Measurement(model, loss_fn, self.batches, options, start=start).sharpness()


def draw_probe(
    dataset: Dataset,
    *,
    size: int,
    batch_size: int,
    mode: ProbeMode,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Probe:
    """Draw a probe from the training set: a function of the seed alone, whatever else is drawn.

    Args:
        dataset: The data set, from whose training samples some are drawn without replacement, and
            without augmentation.
        size: Number of samples.
        batch_size: Samples in a batch; the last one may hold fewer.
        mode: The mode of the network while it is probed.
        seed: The run's seed.
        device: Device on which the batches are kept.
        dtype: Floating-point type of the batches.

    Returns:
        The probe.

    Raises:
        InputError: If there are not that many samples, or one is left over in train mode.
    """
    if not 1 <= size <= len(dataset.train):
        raise InputError(
            f"probe.size is {size}: it must lie between 1 and the {len(dataset.train)} training"
            " samples"
        )
    order = torch.randperm(len(dataset.train), generator=make_generator(seed, "probe"))
    batches = Batches(
        dataset.train.select(order[:size].sort().values),
        mean=dataset.mean,
        std=dataset.std,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    return Probe(tuple(batches.epoch()), mode)
