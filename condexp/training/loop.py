"""The training loop: plain steps, and scheduled ones that are measured as well."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor, nn

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.analysis.curvature.sharpness import SHARPNESS, Sharpness
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.watch import Watcher, watched_by
from condexp.data.loaders import Batches
from condexp.errors import InputError
from condexp.training.choices import RunState, Source
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.evaluate import LossFunction
from condexp.training.events import EvalRecord, Sink, SnapshotRecord, StepRecord
from condexp.training.execution import Forward
from condexp.training.learning_rate import LearningRate
from condexp.training.measured_step import (
    curvature_of_step,
    measurement_hooks,
    sharpness_of_step,
    snapshot_in_float64,
    snapshot_of,
)
from condexp.training.optimizers import set_learning_rate, steady_learning_rate
from condexp.training.probe import Probe
from condexp.training.seeding import random_state, restore_random_state


@dataclass(frozen=True)
class Plan:
    """How long to train, and when to look.

    Attributes:
        num_steps: T, the number of updates.
        steps_per_epoch: Updates in an epoch.
        snapshot_steps: 0-based steps measured before their update, ascending; T is the trained
            network, which only a probe can measure.
        eval_steps: Numbers of finished updates after which to evaluate, ascending; T is one.
        sharpness_every: λ_max of the Hessian is measured before the updates of the steps 0, k, 2k
            and so on; None: never.
    """

    num_steps: int
    steps_per_epoch: int
    snapshot_steps: tuple[int, ...]
    eval_steps: tuple[int, ...]
    sharpness_every: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        state: Complete, diverged (a loss was NaN or infinite), or unfinished: told to pause.
        num_steps_done: Number of finished updates.
        final: Evaluation of the trained network; None where the run ended on the way.
    """

    state: RunState
    num_steps_done: int
    final: EvalRecord | None


class MeasurementEnded(Exception):  # noqa: N818 - it is no error
    """A snapshot was given up on request; nothing of it is stored."""


def never(_step: int) -> bool:
    """Train to the end.

    Args:
        _step: Number of finished updates.

    Returns:
        False.
    """
    return False


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A network, and everything that training and measuring it takes.

    Measuring changes not one bit of what is learned. With ``compiled`` that holds for a probe and
    for a float64 copy of the network; the update of a batch measured as trained is then the model's
    own, which differs from the compiled one's by rounding.

    Attributes:
        model: Trained in place, in train mode.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, the mean over the batch.
        optimizer: Over the model's parameters.
        learning_rate: The learning rate of each step.
        batches: The training set; an epoch of it is ``plan.steps_per_epoch`` batches.
        plan: Length, snapshots and evaluations.
        options: What a snapshot measures.
        source: Snapshots are of the very pass that computes the update, or of the probe. In float64
            (``options.network_precision``) the former are of an extra pass on the same batch.
        evaluate: Train loss and error, test loss and error of a model, which it leaves as found.
        probe: The samples for ``Source.PROBE``.
        compiled: The model compiled, for the steps that are not measured; None: the model itself.
        before_step: Called before each update with the number of the finished ones; may change the
            model.
        communicator: The processes that train the network together, each with its share of
            ``batches``; with several of them ``compiled`` must be None.
        eigenvectors: Those of the last snapshot's ``hessian`` and ``ggn``, and of the last
            sharpness, from which the next search starts; a part of the run's state.

    Raises:
        InputError: If the plan has snapshots that ``source`` cannot give.
    """

    model: nn.Module
    loss_fn: LossFunction
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    batches: Batches
    plan: Plan
    options: AnalysisOptions
    source: Source
    evaluate: Callable[[nn.Module], tuple[float, float, float, float]]
    probe: Probe | None = None
    compiled: Forward | None = None
    before_step: Callable[[int], None] | None = None
    communicator: TrainingCommunicator = SINGLE_PROCESS
    eigenvectors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        last, num_steps = max(self.plan.snapshot_steps, default=-1), self.plan.num_steps
        looks = last >= 0 or self.plan.sharpness_every is not None
        if self.source is Source.PROBE and self.probe is None and looks:
            raise InputError("snapshots of a probe are planned, but there is no probe")
        if self.source is Source.TRAIN_BATCH and last >= num_steps:
            raise InputError(
                f"a snapshot is planned at step {last}, but the last training batch is that of step"
                f" {num_steps - 1}: the trained network can be measured by a probe"
            )

    def train(
        self,
        sinks: Sequence[Sink],
        *,
        start: int = 0,
        pause: Callable[[int], bool] = never,
        watch: Watcher | None = None,
    ) -> Outcome:
        """Train, and measure at the planned steps.

        Args:
            sinks: Told of each step, its snapshot (a probe's: before the step), its evaluation.
            start: Updates that the model and the optimizer have behind them already.
            pause: Called between updates with the number of the finished ones; true ends the
                training there, and ``start`` can resume it.
            watch: Told how far a snapshot is. It may raise `MeasurementEnded`: the training then
                ends before that step, as by ``pause``. Not told where processes would wait for
                each other, where ``before_step`` may have changed the model, and of the snapshot
                after the last step.

        Returns:
            How it ended; a loss that is not finite is reported, and stops the run before its
            update.
        """
        plan, report = self.plan, _Report(self.plan, sinks)
        wrapped = self.communicator.wrap_ddp(self.model)
        self.model.train()
        batches = _endless(self.batches, *divmod(start, plan.steps_per_epoch))
        for step, batch in zip(range(start, plan.num_steps), batches, strict=False):
            if pause(step):
                return report.outcome(RunState.UNFINISHED, step)
            if self.before_step is not None:
                self.before_step(step)
            lr = self.learning_rate(step)
            set_learning_rate(self.optimizer, lr)
            try:
                with watched_by(watch if self._can_end_within_a_step else None):
                    loss = self._gradients(wrapped, *batch, report, step, lr)
            except MeasurementEnded:
                return report.outcome(RunState.UNFINISHED, step)
            self._keep_vectors(report.sharpness)
            if not math.isfinite(loss):
                return report.outcome(RunState.DIVERGED, step)
            self.optimizer.step()
            if step + 1 in report.evaluations_due:
                self.communicator.broadcast_buffers(self.model)
                report.evaluation(step + 1, self.evaluate(self.model))
        self._probe_if_due(plan.num_steps, report)
        return report.outcome(RunState.COMPLETE, plan.num_steps)

    @property
    def _can_end_within_a_step(self) -> bool:
        return self.communicator.world_size == 1 and self.before_step is None

    def _gradients(
        self,
        wrapped: Forward,
        inputs: Tensor,
        targets: Tensor,
        report: "_Report",
        step: int,
        lr: float,
    ) -> float:
        # Measures if it is time, and computes the gradients of a step. What may be given up and
        # made again comes before what is reported.
        report.sharpness = self._sharpness_if_due(step, inputs, targets)
        self._probe_if_due(step, report)
        self.optimizer.zero_grad()
        measured = self._is_measured(step, report)
        if measured and not self.options.in_float64:
            return self._measured_pass(wrapped, inputs, targets, report, step, lr)
        snapshot = self._in_float64(inputs, targets) if measured else None
        loss = self._pass(wrapped if self.compiled is None else self.compiled, inputs, targets)
        report.step(step, loss, lr)
        if snapshot is not None:
            self._report(report, step, snapshot)
        return loss

    def _report(self, report: "_Report", step: int, snapshot: Snapshot) -> None:
        report.snapshot(step, snapshot)
        if self.options.wants_curvature:
            for name in [name for name in self.eigenvectors if name != SHARPNESS]:
                del self.eigenvectors[name]
            self.eigenvectors.update(snapshot.eigenvectors)

    def _sharpness_if_due(self, step: int, inputs: Tensor, targets: Tensor) -> Sharpness | None:
        every = self.plan.sharpness_every
        if every is None or step % every:
            return None
        if self.probe is not None:
            return self.probe.sharpness(self.model, self.loss_fn, self.options, self.eigenvectors)
        measured = (self.model, self.loss_fn, inputs, targets)
        return sharpness_of_step(*measured, self.options, self.eigenvectors)

    def _keep_vectors(self, sharpness: Sharpness | None) -> None:
        if sharpness is not None and sharpness.vectors is not None:
            self.eigenvectors[SHARPNESS] = sharpness.vectors

    def _pass(self, forward: Forward, inputs: Tensor, targets: Tensor) -> float:
        """Compute the gradients of a batch.

        Returns:
            The mean loss over the batches of all processes.
        """
        loss = self.loss_fn(forward(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return self.communicator.all_reduce_mean(loss.item())

    def _is_measured(self, step: int, report: "_Report") -> bool:
        return self.source is Source.TRAIN_BATCH and step in report.snapshots_due

    def _in_float64(self, inputs: Tensor, targets: Tensor) -> Snapshot:
        measured = (self.model, self.loss_fn, self.optimizer, inputs, targets)
        return snapshot_in_float64(*measured, self.options, self.communicator, self.eigenvectors)

    def _measured_pass(
        self,
        forward: Forward,
        inputs: Tensor,
        targets: Tensor,
        report: "_Report",
        step: int,
        lr: float,
    ) -> float:
        measured = (self.model, self.loss_fn, self.optimizer, inputs, targets)
        hooks = measurement_hooks(*measured, self.options, self.communicator)
        curvature = curvature_of_step(
            self.model, self.loss_fn, inputs, targets, self.options, self.eigenvectors
        )
        before = random_state(), [buffer.clone() for buffer in self.model.buffers()]
        try:
            with hooks:
                loss = self._pass(forward, inputs, targets)
            snapshot = snapshot_of(hooks, self.communicator)
        except MeasurementEnded:  # the step is made again, from what it started from
            restore_random_state(before[0])
            for buffer, value in zip(self.model.buffers(), before[1], strict=True):
                buffer.copy_(value)
            raise
        report.step(step, loss, lr)
        self._report(report, step, snapshot.with_curvature(curvature))
        return loss

    def _probe_if_due(self, step: int, report: "_Report") -> None:
        if self.source is not Source.PROBE or step not in report.snapshots_due:
            return
        assert self.probe is not None
        self.communicator.broadcast_buffers(self.model)
        rate = steady_learning_rate(self.optimizer)
        measured = (self.model, self.loss_fn, self.options, rate, self.communicator)
        self._report(report, step, self.probe.measure(*measured, self.eigenvectors))


def _endless(batches: Batches, first_epoch: int, position: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches.epoch(first_epoch, first=position)
    for epoch in count(first_epoch + 1):
        yield from batches.epoch(epoch)


class _Report:
    """Tells every sink what happened, and remembers the last evaluation."""

    def __init__(self, plan: Plan, sinks: Sequence[Sink]) -> None:
        self.snapshots_due = frozenset(plan.snapshot_steps)
        self.evaluations_due = frozenset(plan.eval_steps)
        self._plan, self._sinks = plan, sinks
        self._last: EvalRecord | None = None
        self.sharpness: Sharpness | None = None  # of the step that will be reported

    def step(self, step: int, loss: float, lr: float) -> None:
        found = self.sharpness
        record = StepRecord(step, loss, lr)
        if found is not None:
            record = StepRecord(step, loss, lr, found.value, found.error)
        for sink in self._sinks:
            sink.on_step(record)

    def snapshot(self, step: int, snapshot: Snapshot) -> None:
        record = SnapshotRecord(step, step / self._plan.steps_per_epoch, snapshot)
        for sink in self._sinks:
            sink.on_snapshot(record)

    def evaluation(self, step: int, scores: tuple[float, float, float, float]) -> None:
        record = EvalRecord(step, step / self._plan.steps_per_epoch, *scores)
        self._last = record
        for sink in self._sinks:
            sink.on_eval(record)

    def outcome(self, state: RunState, num_steps_done: int) -> Outcome:
        final = self._last if state is RunState.COMPLETE else None
        # The last update has no loss after it: the evaluation is its witness.
        if final is not None and not math.isfinite(final.train_loss):
            state = RunState.DIVERGED
        return Outcome(state, num_steps_done, final)
