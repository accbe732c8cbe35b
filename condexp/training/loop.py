"""The training loop: plain steps, and at scheduled ones a look inside."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.data.loaders import Batches
from condexp.errors import InputError
from condexp.training.choices import RunState, Source
from condexp.training.distributed.communicator import SINGLE_TRAINING_PROCESS, TrainingCommunicator
from condexp.training.evaluate import LossFunction
from condexp.training.events import EvalRecord, Sink, SnapshotRecord, StepRecord
from condexp.training.execution import Forward
from condexp.training.measured_step import measurement_hooks, snapshot_of
from condexp.training.optimizers import LearningRate, set_learning_rate, steady_learning_rate
from condexp.training.probe import Probe


@dataclass(frozen=True)
class Plan:
    """How long to train, and when to look.

    Attributes:
        num_steps: T, the number of updates.
        steps_per_epoch: Updates in an epoch.
        snapshot_steps: 0-based steps measured before their update, ascending; T is the trained
            network, which only a probe can measure.
        eval_steps: Numbers of finished updates after which to evaluate, ascending; T is one.
    """

    num_steps: int
    steps_per_epoch: int
    snapshot_steps: tuple[int, ...]
    eval_steps: tuple[int, ...]


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


def never(_step: int) -> bool:
    """Train to the end.

    Args:
        _step: Number of finished updates.

    Returns:
        False.
    """
    return False


def train(
    model: nn.Module,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer,
    schedule: LearningRate,
    batches: Batches,
    plan: Plan,
    sinks: Sequence[Sink],
    *,
    options: AnalysisOptions,
    source: Source,
    probe: Probe | None,
    evaluate: Callable[[nn.Module], tuple[float, float, float, float]],
    compiled: Forward | None = None,
    start: int = 0,
    pause: Callable[[int], bool] = never,
    before_step: Callable[[int], None] | None = None,
    crew: TrainingCommunicator = SINGLE_TRAINING_PROCESS,
) -> Outcome:
    """Train, and measure at the planned steps without changing one bit of what is learned.

    With ``compiled`` that holds for a probe; the update of a measured training batch is then the
    model's own, which differs from the compiled one's by rounding.

    Args:
        model: Trained in place, in train mode.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, the mean over the batch.
        optimizer: Over the model's parameters.
        schedule: The learning rate of each step.
        batches: The training set; an epoch of it is ``plan.steps_per_epoch`` batches.
        plan: Length, snapshots and evaluations.
        sinks: Told of each step, its snapshot (a probe's: before the step), its evaluation.
        options: What a snapshot measures.
        source: Snapshots are of the very pass that computes the update, or of the probe.
        probe: The samples for ``Source.PROBE``.
        evaluate: Train loss and error, test loss and error of a model, which it leaves as found.
        compiled: The model compiled, for the steps that are not measured; None: the model itself.
        start: Updates that the model and the optimizer have behind them already.
        pause: Called between updates, with the number of the finished ones; true ends the training
            there, and ``start`` can go on from it.
        before_step: Called after ``pause``, with the same number; may change the model.
        crew: The processes that train the network together, each with its share of ``batches``;
            then ``compiled`` must be None.

    Returns:
        How it ended; a loss that is not finite is reported, and stops the run before its update.
    """
    _check(plan, source, probe)
    report = _Report(plan, sinks)
    due = frozenset(plan.snapshot_steps)
    parallel = crew.parallel(model)
    forward = parallel if compiled is None else compiled
    model.train()

    def probe_if_due(step: int) -> None:
        if step in due and source is Source.PROBE and probe is not None:
            crew.agree_on_buffers(model)
            rate = steady_learning_rate(optimizer)
            report.snapshot(step, probe.measure(model, loss_fn, options, rate, crew))

    ahead = _endless(batches, *divmod(start, plan.steps_per_epoch))
    for step, (inputs, targets) in zip(range(start, plan.num_steps), ahead, strict=False):
        if pause(step):
            return report.outcome(RunState.UNFINISHED, step)
        if before_step is not None:
            before_step(step)
        lr = schedule(step)
        set_learning_rate(optimizer, lr)
        probe_if_due(step)
        optimizer.zero_grad()
        if step in due and source is Source.TRAIN_BATCH:
            hooks = measurement_hooks(model, loss_fn, optimizer, inputs, targets, options, crew)
            with hooks:
                loss = crew.mean(_forward_backward(parallel, loss_fn, inputs, targets))
            report.step(step, loss, lr)
            report.snapshot(step, snapshot_of(hooks, crew))
        else:
            loss = crew.mean(_forward_backward(forward, loss_fn, inputs, targets))
            report.step(step, loss, lr)
        if not math.isfinite(loss):
            return report.outcome(RunState.DIVERGED, step)
        optimizer.step()
        if step + 1 in report.evaluations_due:
            crew.agree_on_buffers(model)
            report.evaluation(step + 1, evaluate(model))
    probe_if_due(plan.num_steps)
    return report.outcome(RunState.COMPLETE, plan.num_steps)


def _endless(batches: Batches, first_epoch: int, position: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches.epoch(first_epoch, first=position)
    for epoch in count(first_epoch + 1):
        yield from batches.epoch(epoch)


def _forward_backward(
    forward: Forward, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> float:
    loss = loss_fn(forward(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _check(plan: Plan, source: Source, probe: Probe | None) -> None:
    last = max(plan.snapshot_steps, default=-1)
    if source is Source.PROBE and probe is None and last >= 0:
        raise InputError("snapshots of a probe are planned, but there is no probe")
    if source is Source.TRAIN_BATCH and last >= plan.num_steps:
        raise InputError(
            f"a snapshot is planned at step {last}, but the last training batch is that of step"
            f" {plan.num_steps - 1}: the trained network can be measured by a probe"
        )


class _Report:
    """Tells every sink, and remembers the last evaluation."""

    def __init__(self, plan: Plan, sinks: Sequence[Sink]) -> None:
        self.evaluations_due = frozenset(plan.eval_steps)
        self._plan, self._sinks = plan, sinks
        self._last: EvalRecord | None = None

    def step(self, step: int, loss: float, lr: float) -> None:
        record = StepRecord(step, loss, lr)
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
