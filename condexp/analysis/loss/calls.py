"""Loss functions of torch's that a loss of any spelling calls, and the denominator they give."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from condexp.analysis.loss.denominator import loss_denominator
from condexp.errors import InputError

_ENTROPIES: Mapping[Any, type[nn.CrossEntropyLoss | nn.NLLLoss]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
}
_ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
    F.poisson_nll_loss,
)


@dataclass(frozen=True, eq=False)
class LossCall:
    """One call of a loss function of torch's.

    Args:
        function: The function.
        arguments: Its arguments by name, defaults included.
    """

    function: Callable[..., Tensor]
    arguments: Mapping[str, Any]

    @property
    def module(self) -> nn.Module | None:
        """The module that reduces as this call does; None where there is none of plain labels."""
        given = self.arguments
        if self.function is F.mse_loss and given.get("weight") is None:
            return nn.MSELoss(reduction=given["reduction"])
        if self.function is F.cross_entropy:
            return nn.CrossEntropyLoss(
                weight=given["weight"],
                ignore_index=given["ignore_index"],
                reduction=given["reduction"],
                label_smoothing=given["label_smoothing"],
            )
        if self.function is F.nll_loss:
            return nn.NLLLoss(
                weight=given["weight"],
                ignore_index=given["ignore_index"],
                reduction=given["reduction"],
            )
        return None

    def denominator(self, num_samples: int) -> float | None:
        """Return D of a scalar that this call returns; None where it is no scalar.

        Args:
            num_samples: Number N of the model's samples.

        Returns:
            See :func:`.loss_denominator`; the mean over all numbers of elementwise losses is one
            over samples, whatever the outputs' shape.
        """
        reduction = self.arguments["reduction"]
        if reduction == "none":
            return None
        if reduction == "sum":
            return 1.0
        if self.function in _ENTROPIES:
            return loss_denominator(self.module, self.arguments["target"], num_samples)
        return float(num_samples)


class _Observer(TorchFunctionMode):
    """Notes calls of loss functions, however they are reached, and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[LossCall] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ENTROPIES or func in _ELEMENTWISE:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            self.calls.append(LossCall(func, bound.arguments))
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class ObservedLoss:
    """A loss that was computed, and what it was made of.

    Args:
        value: The loss.
        calls: Calls of torch's loss functions that it took.
    """

    value: Tensor
    calls: tuple[LossCall, ...]

    @classmethod
    def of(
        cls, loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any
    ) -> "ObservedLoss":
        """Compute a loss; one given as a module, a function, a lambda or a wrapper looks the same.

        Args:
            loss_fn: The loss.
            outputs: The model's outputs.
            targets: The targets.

        Returns:
            The loss, and what it called.
        """
        with _Observer() as observer:
            value = loss_fn(outputs, targets)
        return cls(value, tuple(observer.calls))

    def plain(self, outputs: object) -> nn.Module | None:
        """Return the one loss module that was computed of the model's outputs as they are."""
        if len(self.calls) != 1 or self.calls[0].arguments["input"] is not outputs:
            return None
        return self.calls[0].module


def measured_denominator(
    loss_fn: Callable[[Any, Any], Tensor],
    observed: ObservedLoss,
    outputs: Any,
    targets: Any,
    num_samples: int,
) -> float:
    """Return D, the number by which a loss divides its sum over samples (``docs/theory.md`` §2).

    That is told by the loss functions of torch's that are called. Any other loss is taken as a mean
    over the samples, with a warning where it does not look like one.

    Args:
        loss_fn: The loss.
        observed: The loss of this batch.
        outputs: The model's outputs.
        targets: The targets.
        num_samples: Number N of samples.

    Returns:
        The denominator.

    Raises:
        InputError: If all targets are ignored.
    """
    found = {call.denominator(num_samples) for call in observed.calls} - {None}
    if len(found) == 1:
        denominator = found.pop()
        assert denominator is not None
        if denominator == 0:
            raise InputError("every target of a batch is ignored, so that there is no loss.")
        return denominator
    if _doubles(loss_fn, observed, outputs, targets):
        warnings.warn(
            "the loss doubles where every sample is given twice, as a sum does, and none of torch's"
            f" loss functions tells by what it is divided: D = N = {num_samples} is taken, as for a"
            " mean over the samples; give denominator=... (1 for a sum).",
            stacklevel=2,
        )
    return float(num_samples)


def _doubles(
    loss_fn: Callable[[Any, Any], Tensor], observed: ObservedLoss, outputs: Any, targets: Any
) -> bool:
    value = observed.value.item()
    try:
        with torch.no_grad():
            twice = loss_fn(_twice(outputs), _twice(targets)).item()
    except Exception:  # it takes one number of samples only
        return False
    return value != 0 and math.isclose(twice, 2 * value, rel_tol=1e-4)


def _twice(nested: Any) -> Any:
    if isinstance(nested, Tensor):
        return torch.cat([nested.detach(), nested.detach()]) if nested.ndim else nested
    if isinstance(nested, dict):
        return {key: _twice(part) for key, part in nested.items()}
    if isinstance(nested, tuple | list):
        return type(nested)(_twice(part) for part in nested)
    return nested
