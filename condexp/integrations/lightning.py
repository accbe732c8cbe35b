"""A callback of Lightning's Trainer that leaves a run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from condexp.errors import InputError
from condexp.integrations.callback_record import CallbackRecord
from condexp.training.snapshot_schedule import Schedule


class ConditioningCallback(lightning.Callback):
    """Records a Lightning training as :func:`condexp.record_run` does a loop.

    A step is an update of the optimizer with all parts of an accumulated batch; gradients are
    measured before they are clipped. The loss that is kept is the sum of the parts', each divided
    by their number as Lightning does. Resumed by ``trainer.fit(..., ckpt_path=...)``, the file goes
    on from the checkpoint's step. Modules with automatic optimization and one optimizer.

    Args:
        folder: The run folder.
        schedule: The steps to measure.
        module: Name of the part of the LightningModule that ``training_step`` calls, such as
            ``"net"``; None: the LightningModule itself, called as ``self(inputs)``.
        config: As for :func:`condexp.record_run`; the module's ``hparams`` are added.
        **options: All that :func:`condexp.record_run` takes besides.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        schedule: Schedule,
        module: str | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._folder, self._schedule, self._module = folder, schedule, module
        self._config, self._options = dict(config or {}), options
        self._record, self._loss = CallbackRecord(), 0.0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin, or go on with, the record.

        Raises:
            InputError: If the length of the training is not known, the module optimizes by hand or
                with several optimizers, and as for :func:`condexp.record_run`.
        """
        num_steps = trainer.estimated_stepping_batches
        if num_steps == float("inf"):
            raise InputError("the length of the training is unknown: give max_steps or max_epochs.")
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise InputError(
                "ConditioningCallback takes automatic optimization with one optimizer: put "
                "condexp.record_run around the steps of your own training_step."
            )
        name = self._module
        model = pl_module if name is None else pl_module.get_submodule(name)
        max_epochs = trainer.max_epochs or 0
        self._record.open(
            self._folder,
            model,
            num_steps=int(num_steps),
            schedule=self._schedule,
            optimizer=trainer.optimizers[0],
            steps_per_epoch=-(-int(num_steps) // max_epochs) if max_epochs > 0 else None,
            config={**dict(pl_module.hparams), **self._config},
            **self._options,
        )

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002 - Lightning's names
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Begin a step with the first part of its batch."""
        if not self._record.in_step:
            self._loss = 0.0
            self._record.begin_step(trainer.global_step)

    def on_before_optimizer_step(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        optimizer: Any,  # noqa: ARG002
    ) -> None:
        """End the step: all gradients are there."""
        self._record.end_step()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Add the loss of a part."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._loss += float(loss)
            if not self._record.in_step:
                self._record.log(self._loss)

    def on_train_end(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
    ) -> None:
        """End the record."""
        self._record.close(None)

    def on_exception(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Say what ended the training."""
        self._record.close(exception)
