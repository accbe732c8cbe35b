"""Run the passes that a listener measures: the loss's own, and those of other labels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.fisher.memory import Memory
from condexp.analysis.loss.cotangents import Cotangents, FisherLabels, refuse_batch_statistics
from condexp.analysis.loss.denominator import loss_denominator
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import SIGNAL_MATRICES, FisherType
from condexp.errors import InputError

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class _Run:
    """What goes through the batches once."""

    labels: FisherLabels | None
    listener: MeasurementHooks
    memory: Memory


@dataclass(frozen=True)
class Measurement:
    """The batches of one analysis and what is done with each.

    Args:
        model: The network; it is left exactly as found.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar.
        batches: Pairs of inputs ``[N_b, ...]`` and targets.
        options: What to measure.
        learning_rate: For ``effective_lr``.
        denominator: D; None: see :func:`condexp.analysis.loss.denominator.loss_denominator`.
        communicator: The processes that take turns at the batches, which all of them have.
    """

    model: nn.Module
    loss_fn: LossFunction
    batches: Iterable[tuple[Tensor, Any]]
    options: AnalysisOptions
    learning_rate: float | None = None
    denominator: float | None = None
    communicator: Communicator = SINGLE_PROCESS

    def measure(self) -> Snapshot:
        """Measure all batches together.

        Returns:
            The snapshot; of several processes, rank 0 has it.
        """
        listener = self._run()
        if again := listener.tapes.came_again:
            listener = replace(self, options=replace(self.options, float64=again))._run()
        return listener.snapshot(self.communicator)

    @property
    def _streaming(self) -> bool:
        # Batches that can be gone through only once are never asked for again.
        one = isinstance(self.batches, Sequence) and len(self.batches) == 1
        return not one or self.communicator.world_size > 1

    def _run(self) -> MeasurementHooks:
        run = _Run(self._labels(), self._listener(), self._memory())
        num_batches = 0
        with (
            preserved_state(self.model),
            torch.inference_mode(False),
            torch.enable_grad(),
            run.listener,
        ):
            for number, (inputs, targets) in enumerate(self.batches):
                num_batches += 1
                if number % self.communicator.world_size == self.communicator.rank:
                    self._pass(run, number, inputs, targets)
        if num_batches == 0:
            raise InputError("there is no batch to analyse: give at least one (inputs, targets).")
        return run.listener

    def _labels(self) -> FisherLabels | None:
        options = self.options
        if options.fisher_type is FisherType.EMPIRICAL or not options.wants(*SIGNAL_MATRICES):
            return None
        refuse_batch_statistics(self.model, options)
        return FisherLabels(self.loss_fn, options)

    def _listener(self) -> MeasurementHooks:
        return MeasurementHooks(
            self.model,
            self.options,
            learning_rate=self.learning_rate,
            loss_fn=self.loss_fn,
            streaming=self._streaming,
            single=not self._streaming,
        )

    def _memory(self) -> Memory:
        num_samples = None
        if isinstance(self.batches, Sequence):
            num_samples = sum(len(inputs) for inputs, _ in self.batches if _has_samples(inputs))
        return Memory(self.options.memory_limit, num_samples, streaming=self._streaming)

    def _pass(self, run: _Run, number: int, inputs: Tensor, targets: Any) -> None:
        if not _has_samples(inputs):
            raise InputError(
                "inputs must be a tensor [N, ...] with at least one sample, got "
                f"{_described(inputs)}; for other inputs put a Recorder around your own forward "
                "and backward pass."
            )
        denominator, listener = self.denominator, run.listener
        if denominator is None:
            denominator = loss_denominator(self.loss_fn, targets, len(inputs))
        listener.denominator = denominator
        # A copy, because the first operation may work in place.
        outputs = self.model(inputs.clone())
        loss = self.loss_fn(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                f"loss_fn must return a scalar tensor, got {_described(loss)}; "
                "take the mean over the samples."
            )
        if not (loss.requires_grad and listener.weights):
            return
        signals = (
            None
            if run.labels is None
            else run.labels.signals(outputs, targets, len(inputs), number)
        )
        count = 1 if signals is None else signals.count
        groups = run.memory.groups(
            listener.tapes.blocks, count, len(inputs), listener.tapes.num_samples
        )
        # Unlike backward(), this touches no .grad and goes only as far as is needed.
        torch.autograd.grad(
            loss, listener.weights, retain_graph=signals is not None, allow_unused=True
        )
        if signals is not None:
            _sweep(listener, outputs, signals, groups or [list(listener.edges)])
        for block in listener.tapes.blocks.values():
            block.close()  # also where some call got no gradient


def _sweep(
    listener: MeasurementHooks,
    outputs: Tensor,
    signals: Cotangents,
    groups: Sequence[Sequence[str]],
) -> None:
    """Back-propagate all signals, as far as the layers of one group after another."""
    for names in groups:
        edges = [edge for name in names for edge in listener.edges.get(name, ())]
        with listener.sweep(names, signals.count):
            for number in range(signals.count):
                torch.autograd.grad(
                    outputs, edges, signals.make(number), retain_graph=True, allow_unused=True
                )


def _has_samples(inputs: object) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim > 0 and len(inputs) > 0


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
