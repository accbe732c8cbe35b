"""The user's own optimizer, learning rate and loss: built, and tried before anything is written."""

import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from condexp.config.training import ImportLossConfig, ImportOptimizerConfig, ImportSchedulerConfig
from condexp.data.dataset import Dataset, Task
from condexp.errors import InputError
from condexp.models.user_code import call_target, said_where
from condexp.training.evaluate import LossFunction
from condexp.training.learning_rate import LearningRate


def build_own_optimizer(config: ImportOptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Call the user's class or function.

    Args:
        config: The keys.
        model: What it is to train.

    Returns:
        What it returned.

    Raises:
        InputError: If it fails, or returns no ``torch.optim.Optimizer`` whose groups share the
            learning rate.
    """
    offered = {"params": model.parameters(), "model": model, "lr": config.lr}
    example = "my_training:Lion for the class Lion in my_training.py"
    with _failures("optimizer", config.target):
        found = call_target("optimizer", config.target, config.kwargs, offered, example)
    if not isinstance(found, torch.optim.Optimizer):
        raise InputError(
            f"optimizer.target={config.target!r} gives {type(found).__name__!r}: give a subclass "
            "of torch.optim.Optimizer, or a function that returns one."
        )
    rates = [group.get("lr") for group in found.param_groups]
    if any(rate != config.lr for rate in rates):
        raise InputError(
            f"optimizer.target={config.target!r} has groups of lr {rates}, and optimizer.lr is "
            f"{config.lr}: the scheduler sets lr at each step. Take it from optimizer.lr, and give "
            "a group that is to differ its own 'lr_scale', a factor of it."
        )
    return found


def try_optimizer(config: ImportOptimizerConfig, model: nn.Module) -> int:
    """Build the optimizer, let it update once with gradients of zeros, and save its state.

    Args:
        config: The keys.
        model: A network like the one to be trained, with values; it is changed.

    Returns:
        The bytes of the state.

    Raises:
        InputError: If one of these fails, or the state cannot be read again without running code.
    """
    optimizer = build_own_optimizer(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with _failures("optimizer", config.target, "at its first step"):
        optimizer.step()
    saved = io.BytesIO()
    try:
        torch.save(optimizer.state_dict(), saved)
        torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    except Exception as error:
        raise InputError(
            f"optimizer.target={config.target!r}: its state_dict() holds objects that no "
            "checkpoint takes: keep tensors, numbers, texts, lists and dictionaries in it."
        ) from error
    return len(saved.getvalue())


def own_learning_rate(
    config: ImportSchedulerConfig, lr: float, num_steps: int, steps_per_epoch: int
) -> LearningRate:
    """Ask the user's scheduler for the learning rate of every step.

    It is asked in the order of the steps, before the training: so a run that resumes has the same
    learning rates, whether they are a function of the step or of the ones before.

    Args:
        config: The keys.
        lr: ``optimizer.lr``.
        num_steps: Updates of the run.
        steps_per_epoch: Updates in an epoch.

    Returns:
        A function from the step to the learning rate.

    Raises:
        InputError: If it fails, is neither a function of the step nor a scheduler of torch's, or
            gives anything but finite numbers from 0 on.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    offered = {
        "lr": lr,
        "num_steps": num_steps,
        "steps_per_epoch": steps_per_epoch,
        "optimizer": optimizer,
    }
    example = "my_training:rate for the function rate in my_training.py"
    with _failures("scheduler", config.target):
        found = call_target("scheduler", config.target, config.kwargs, offered, example)
        if isinstance(found, LRScheduler):
            rates = [_next_rate(optimizer, found) for _ in range(num_steps)]
        elif callable(found):
            rates = [float(found(step)) for step in range(num_steps)]
        else:
            raise InputError(
                f"scheduler.target={config.target!r} gives {type(found).__name__!r}: give a "
                "function that returns a function from the step to the learning rate, or a class "
                "of torch.optim.lr_scheduler."
            )
    for step, rate in enumerate(rates):
        if not (math.isfinite(rate) and rate >= 0):
            raise InputError(
                f"scheduler.target={config.target!r} gives {rate} at step {step}: a learning rate "
                "is a finite number, at least 0."
            )
    return rates.__getitem__


def build_own_loss(config: ImportLossConfig, dataset: Dataset) -> LossFunction:
    """Call the user's class or function, and the loss that it makes on two samples.

    Args:
        config: The keys.
        dataset: Its task and its outputs are those of the loss.

    Returns:
        The loss.

    Raises:
        InputError: If it fails, or the loss is no function of outputs and targets that returns one
            number with a gradient, or has parameters, which nobody would train.
    """
    offered = {"num_outputs": dataset.num_outputs}
    example = "torch.nn:CrossEntropyLoss"
    with _failures("loss", config.target):
        loss_fn = call_target("loss", config.target, config.kwargs, offered, example)
    if not callable(loss_fn):
        raise InputError(
            f"loss.target={config.target!r} gives {type(loss_fn).__name__!r}: give a class or a "
            "function that makes a function of outputs and targets."
        )
    if isinstance(loss_fn, nn.Module) and any(True for _ in loss_fn.parameters()):
        raise InputError(
            f"loss.target={config.target!r} has parameters, and only the model's are trained: "
            "make them buffers, or parts of the model."
        )
    outputs = torch.zeros(2, dataset.num_outputs, requires_grad=True)
    classes = dataset.task is Task.CLASSIFICATION
    targets = torch.tensor([0, dataset.num_outputs - 1]) if classes else torch.ones_like(outputs)
    kind = f"outputs {list(outputs.shape)} and targets {targets.dtype} {list(targets.shape)}"
    with _failures("loss", config.target, f"on {kind}"):
        loss = loss_fn(outputs, targets.detach())
    if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
        given = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(
            f"loss.target={config.target!r} gives {given} on {kind}: it must give one number, a "
            "tensor without dimensions that depends on the outputs."
        )
    made: Callable[[Tensor, Tensor], Tensor] = loss_fn
    return made


def _next_rate(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> float:
    rate = float(optimizer.param_groups[0]["lr"])
    optimizer.step()  # torch warns where this is left out
    scheduler.step()
    return rate


class _failures:  # noqa: N801 - reads as a word of the with statement
    """Turns what the user's code raises into one message that says where."""

    def __init__(self, group: str, target: str, when: str = "as it is made") -> None:
        self._what = f"{group}.target={target!r} fails {when}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(f"{self._what}: {said_where(error)}") from error
