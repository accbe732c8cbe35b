"""A training loop of the user's own that leaves a run folder."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.options import AnalysisChoices, AnalysisOptions
from condexp.analysis.recorder import Recorder
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.errors import InputError, choose
from condexp.runs.record_folder import RecordFolder, RecordSetting
from condexp.store.run_folder.status import State
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from condexp.training.events import EvalRecord, SnapshotRecord, StepRecord
from condexp.training.loop import Plan
from condexp.training.optimizers import steady_learning_rate
from condexp.training.snapshot_schedule import Schedule

OWN_KEYS = ("analysis", "trainer")


def record_run(
    folder: str | Path,
    model: nn.Module,
    *,
    num_steps: int,
    schedule: Schedule,
    loss_fn: object | None = None,
    config: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    steps_per_epoch: int | None = None,
    eval_steps: Iterable[int] = (),
    on_existing: str = "resume",
    denominator: float | None = None,
    options: AnalysisOptions | Iterable[str] | None = None,
    **choices: Unpack[AnalysisChoices],
) -> "RunRecord":
    """Let a training loop of your own leave a run folder, as ``condexp run`` does.

    ``with record_run(...) as run:`` around the loop, ``with run.step(step):`` around the forward
    and backward passes of each update: those of scheduled steps are measured, the others are free.
    The very first pass is watched too, for the layers that the file is made for. The training is
    unchanged, bit for bit. The end of the ``with`` says in ``status.json`` how the loop ended:
    ``complete``, ``interrupted`` (before its last step, or by Ctrl-C), ``failed`` (an exception,
    which goes on) or ``diverged`` (the last loss logged was no number).

    The loop's own checkpoints decide where it resumes: at ``run.resumable_from`` or any earlier
    step. The first ``run.step`` takes back what was recorded from that step on. In a process group
    of torch's all ranks make the same calls; rank 0 writes, and a snapshot is of all ranks' rows.

    Args:
        folder: The run folder, made if it is not there.
        model: The network, or a ``DistributedDataParallel`` of it.
        num_steps: T, the number of updates of the whole loop.
        schedule: The steps to measure, from 0 to T − 1.
        loss_fn: The loss, if it is one of torch's modules: a sum has D = 1.
        config: What tells this run from others, as nested plain values; the keys of tables.
        optimizer: Its learning rate is logged, and that of SGD gives ``effective_lr``.
        steps_per_epoch: Updates of an epoch; None: there is one epoch.
        eval_steps: Numbers of finished updates after which ``run.eval`` is called, ascending.
        on_existing: ``resume``, ``restart`` or ``fail``, for a folder that holds a run.
        denominator: As for :class:`condexp.Recorder`.
        options: As for :class:`condexp.Recorder`.
        **choices: Options by name, as for :class:`condexp.Recorder`.

    Returns:
        The record, to be used in a ``with``.

    Raises:
        InputError: If an option is invalid, the schedule never fires, or the folder holds another
            run, or a finished one; nothing was written.
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    chosen = AnalysisOptions.of(options, choices, ("denominator", "loss_fn"))
    Recorder(bare, chosen)  # refuses what a pass of the user's own cannot measure
    choose("on_existing", on_existing, ("resume", "restart", "fail"))
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}: it must be at least 1.")
    per_epoch = steps_per_epoch or num_steps
    plan = Plan(
        num_steps,
        per_epoch,
        schedule.steps(num_steps, per_epoch, num_steps - 1),
        tuple(sorted({*eval_steps})),
    )
    if beyond := [step for step in plan.eval_steps if not 1 <= step <= num_steps]:
        raise InputError(
            f"eval_steps holds {beyond}: it counts finished updates, 1 to {num_steps}."
        )
    if taken := [key for key in OWN_KEYS if key in (config or {})]:
        raise InputError(f"config has the key {taken[0]!r}, which condexp fills: rename it.")
    device = next((p.device for p in bare.parameters()), torch.device("cpu"))
    if denominator is None and getattr(loss_fn, "reduction", None) == "sum":
        denominator = 1.0
    setting = RecordSetting(
        title=f"{type(bare).__name__}, recorded in {Path(folder).name}",
        config=_config(config or {}, chosen, plan),
        options=chosen,
        plan=plan,
        on_existing=on_existing,
        device=str(device),
    )
    return RunRecord(Path(folder), bare, setting, denominator, optimizer)


def _config(config: Mapping[str, Any], options: AnalysisOptions, plan: Plan) -> dict[str, Any]:
    analysis = {
        "matrices": [str(matrix) for matrix in options.matrices],
        "layers": {"include": list(options.layers), "exclude": list(options.exclude)},
        "conv_input": str(options.conv_input),
        **({"weight_sharing": str(options.weight_sharing)} if options.reduces else {}),
        "center": options.center,
        "bias": options.bias,
        "precision": str(options.precision),
        "kappa_p": list(options.kappa_p),
        "source": "train_batch",
        "schedule": {"at_steps": list(plan.snapshot_steps)},
    }
    whole = {**config, "analysis": analysis, "trainer": {"steps": plan.num_steps}}
    try:
        yaml.safe_dump(whole)
    except yaml.YAMLError as error:
        raise InputError(
            f"config holds what is no plain value: {error}; give numbers, texts, lists, mappings."
        ) from error
    return whole


class RunRecord:
    """A loop that is recorded. Made by :func:`record_run`.

    Args:
        folder: The run folder.
        model: The network, which the loop calls or a wrapper of it.
        setting: What is recorded.
        denominator: D of the loss; None: it is measured, or N.
        optimizer: The optimizer whose learning rate is read.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        setting: RecordSetting,
        denominator: float | None,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.path, self._model, self._setting = folder, model, setting
        self._denominator, self._optimizer = denominator, optimizer
        self._plan, self._due = setting.plan, frozenset(setting.plan.snapshot_steps)
        self._communicator: TrainingCommunicator = SINGLE_PROCESS
        self._folder: RecordFolder | None = None  # on rank 0, inside the with
        self._resumable_from = 0
        self._begun = self._knows_layers = False
        self._next = 0
        self._open: int | None = None  # the step that is not told yet, for its loss is to come
        self._loss: float | None = None
        self._lr, self._diverged = math.nan, False
        self._idle = nullcontext()
        self._snapshot: Snapshot | None = None

    @property
    def resumable_from(self) -> int:
        """The last step that the loop may go on with: all before it are recorded."""
        return self._resumable_from

    @property
    def snapshot(self) -> Snapshot | None:
        """What was measured at the step that was left last; None where that was not scheduled.

        It is there after the ``with run.step(step):``, for the logger of your own loop, and of
        several processes on rank 0 alone.
        """
        return self._snapshot

    def __enter__(self) -> Self:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._communicator = ProcessGroupCommunicator(torch.device(self._setting.device), 1)
        refused: Exception | None = None
        if self._communicator.rank == 0:
            try:
                self._folder = RecordFolder(self.path, self._setting)
            except Exception as error:  # all ranks end by it
                refused = error
        found = (0, False)
        if self._folder is not None:
            found = self._folder.num_steps, self._folder.has_file
        told = self._communicator.all_gather_object((refused, found))[0]
        if told[0] is not None:
            raise told[0]
        self._resumable_from, self._knows_layers = told[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            if error is None or self._loss is not None:  # else it is a step that did not end
                self._tell_step(folder)
            folder.finish(*self._outcome(error))
        except BaseException:
            folder.abandon()
            if error is None:  # else that one goes on
                raise

    def step(self, step: int) -> AbstractContextManager[None]:
        """Stand around the forward and backward passes of one update.

        Args:
            step: The number of the update, from 0; each follows the one before.

        Returns:
            A context manager; it measures where the schedule says so, and else does nothing.

        Raises:
            InputError: If a step was left out, or the loop begins after ``resumable_from``.
        """
        if step != self._next or not self._begun:
            self._begin(step)
        elif self._folder is not None:
            self._tell_step(self._folder)
        self._open, self._next, self._snapshot = step, step + 1, None
        if self._optimizer is not None:
            self._lr = float(self._optimizer.param_groups[0]["lr"])
        if step in self._due or not self._knows_layers:
            return self._measured(step)
        return self._idle

    def log(self, *, loss: float | None = None, lr: float | None = None) -> None:
        """Record the loss of the last step, and its learning rate.

        Args:
            loss: Loss of the batch, before the update.
            lr: Learning rate of the update; None: the optimizer's, where there is one.
        """
        if loss is not None:
            self._loss = float(loss)
        if lr is not None:
            self._lr = float(lr)

    def eval(
        self,
        *,
        train_loss: float = math.nan,
        train_error: float = math.nan,
        test_loss: float = math.nan,
        test_error: float = math.nan,
    ) -> None:
        """Record an evaluation of the network as it is after the last update.

        Args:
            train_loss: Loss over the training set.
            train_error: Misclassified share of the training set, in percent.
            test_loss: Loss over the test set.
            test_error: Misclassified share of the test set, in percent.

        Raises:
            InputError: If ``eval_steps`` does not hold this number of updates.
        """
        step, planned = self._next, self._plan.eval_steps
        if step not in planned:
            raise InputError(
                f"run.eval after {step} updates, and eval_steps={list(planned)}: the file has a "
                "row for those alone."
            )
        if self._folder is not None:
            self._tell_step(self._folder)
            epoch = step / self._plan.steps_per_epoch
            scores = (train_loss, train_error, test_loss, test_error)
            self._folder.on_eval(EvalRecord(step, epoch, *map(float, scores)))

    def _begin(self, step: int) -> None:
        if self._begun or not 0 <= step < self._plan.num_steps:
            after = f"step {self._next}" if self._begun else f"0 to {self._plan.num_steps - 1}"
            raise InputError(f"run.step({step}): expected {after}; every update is a step.")
        if step > self._resumable_from:
            raise InputError(
                f"run.step({step}): the folder holds the steps before {self._resumable_from}: go "
                "on with that one or an earlier one, or give on_existing='restart'."
            )
        self._begun = True
        if self._folder is not None:
            self._folder.begin(step)

    @contextmanager
    def _measured(self, step: int) -> Iterator[None]:
        hooks = self._hooks()
        with hooks:
            yield
        snapshot = hooks.snapshot(self._communicator)
        self._take(step, snapshot)
        self._knows_layers = True

    def _hooks(self) -> MeasurementHooks:
        alone, optimizer = self._communicator.world_size == 1, self._optimizer
        rate = None if optimizer is None else steady_learning_rate(optimizer)
        return MeasurementHooks(
            self._model,
            self._setting.options,
            denominator=self._denominator,
            learning_rate=rate,
            # Of several processes, each has rows that are merged before a spectrum is computed.
            pass_mode=PassMode.USER_PASSES if alone else PassMode.SEVERAL_PASSES,
            keep_weights=False,
        )

    def _take(self, step: int, snapshot: Snapshot) -> None:
        if self._folder is None:
            return
        if not self._folder.has_file:
            self._folder.create(self._setting.file_spec(snapshot))
        if step in self._due:
            self._snapshot = snapshot
            epoch = step / self._plan.steps_per_epoch
            self._folder.on_snapshot(SnapshotRecord(step, epoch, snapshot))

    def _tell_step(self, folder: RecordFolder) -> None:
        """Write the step that is open, whose loss and learning rate are known by now."""
        if self._open is None:
            return
        loss = math.nan if self._loss is None else self._loss
        folder.on_step(StepRecord(self._open, loss, self._lr))
        self._diverged = self._loss is not None and not math.isfinite(loss)
        self._open, self._loss, self._lr = None, None, math.nan

    def _outcome(self, error: BaseException | None) -> tuple[State, str | None]:
        done, planned = self._next, self._plan.num_steps
        if isinstance(error, KeyboardInterrupt):
            return State.INTERRUPTED, "stopped by Ctrl-C"
        if error is not None:
            return State.FAILED, f"{type(error).__name__}: {error}".removesuffix(": ")
        if self._diverged:
            return State.DIVERGED, None
        if done < planned:
            return State.INTERRUPTED, f"the loop ended after {done} of {planned} steps"
        return State.COMPLETE, None
