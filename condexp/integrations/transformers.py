"""A callback of Hugging Face's Trainer that leaves a run folder."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import transformers

from condexp.integrations.callback_record import CallbackRecord
from condexp.training.snapshot_schedule import Schedule


class ConditioningCallback(transformers.TrainerCallback):
    """Records a training by Hugging Face's Trainer as :func:`condexp.record_run` does a loop.

    A step is an update of the optimizer with all parts of an accumulated batch; gradients are
    measured before they are clipped. The loss that is kept is the one that the Trainer logs: with
    ``logging_steps=1`` each step's; with more, the mean since the last, at the steps that log.
    Resumed by ``trainer.train(resume_from_checkpoint=...)``, the file goes on from the checkpoint's
    step. The Trainer tells its callbacks of no exception: ``with callback: trainer.train()`` lets
    the folder say ``failed``; without it, the folder says that its process is gone.

    Args:
        folder: The run folder.
        schedule: The steps to measure.
        config: As for :func:`condexp.record_run`.
        **options: All that :func:`condexp.record_run` takes besides.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        schedule: Schedule,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._folder, self._schedule = folder, schedule
        self._config, self._options = config, options
        self._record = CallbackRecord()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._record.close(error)

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,  # noqa: ARG002 - the Trainer's names
        **kwargs: Any,
    ) -> None:
        """Begin, or go on with, the record."""
        optimizer = kwargs["optimizer"]
        whole_epochs = args.max_steps <= 0 and args.num_train_epochs >= 1
        self._record.open(
            self._folder,
            kwargs["model"],
            num_steps=state.max_steps,
            schedule=self._schedule,
            optimizer=getattr(optimizer, "optimizer", optimizer),  # without accelerate's wrapper
            steps_per_epoch=round(state.max_steps / args.num_train_epochs)
            if whole_epochs
            else None,
            config=self._config,
            **self._options,
        )

    def on_step_begin(
        self,
        args: transformers.TrainingArguments,  # noqa: ARG002
        state: transformers.TrainerState,
        control: transformers.TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Begin a step."""
        self._record.begin_step(state.global_step)

    def on_pre_optimizer_step(
        self,
        args: transformers.TrainingArguments,  # noqa: ARG002
        state: transformers.TrainerState,  # noqa: ARG002
        control: transformers.TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """End the step: all gradients are there."""
        self._record.end_step()

    def on_log(
        self,
        args: transformers.TrainingArguments,  # noqa: ARG002
        state: transformers.TrainerState,  # noqa: ARG002
        control: transformers.TrainerControl,  # noqa: ARG002
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Keep the loss that is logged."""
        if logs and "loss" in logs:
            self._record.log(float(logs["loss"]))

    def on_train_end(
        self,
        args: transformers.TrainingArguments,  # noqa: ARG002
        state: transformers.TrainerState,  # noqa: ARG002
        control: transformers.TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """End the record."""
        self._record.close(None)
