"""The denominator of the data's loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from condexp.errors import InputError

# Called as they are, torch's functions reduce as its modules do by default.
_MODULES = (
    (F.cross_entropy, nn.CrossEntropyLoss),
    (F.nll_loss, nn.NLLLoss),
    (F.mse_loss, nn.MSELoss),
)


def as_module(loss_fn: object) -> object:
    """Return one of torch's functions as its module; every other loss as it is.

    Args:
        loss_fn: The loss, of any type.

    Returns:
        The module, which reduces as the function does.
    """
    return next((kind() for function, kind in _MODULES if loss_fn is function), loss_fn)


def loss_denominator(loss_fn: object, targets: object, num_samples: int) -> float:
    """Return D, the number by which a loss divides its sum over samples (``docs/theory.md`` §2).

    ``g = D · ∂L/∂h`` is then the gradient of one sample's loss, whatever the reduction.

    Args:
        loss_fn: The loss. Cross-entropy and NLL modules with ``reduction="mean"`` divide by the
            valid targets or, where weighted, by their classes' weights; modules with ``"sum"`` by
            1; torch's own functions are taken as these modules, everything else as a mean over the
            samples.
        targets: Targets that the loss is given; class indices ``[N, ...]`` or probabilities
            ``[N, C, ...]`` for cross-entropy.
        num_samples: Number N of samples.

    Returns:
        The denominator.

    Raises:
        InputError: If the loss has ``reduction="none"``.
    """
    loss_fn = as_module(loss_fn)
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction == "none":
        raise InputError(
            f"{type(loss_fn).__name__}(reduction='none') returns a loss for each sample: "
            "give one that returns a scalar, reduction='mean' or 'sum'."
        )
    if reduction == "sum":
        return 1.0
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) and isinstance(targets, Tensor):
        return _num_targets(loss_fn, targets)
    return float(num_samples)


def _num_targets(loss_fn: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> float:
    """Return the number of valid targets, or the sum of the weights of their classes."""
    if targets.is_floating_point():  # probabilities: torch ignores weights and ignore_index here
        num_classes = targets.shape[1] if targets.ndim > 1 else targets.numel()
        return targets.numel() / num_classes
    valid = targets[targets != loss_fn.ignore_index]
    if loss_fn.weight is None:
        return float(valid.numel())
    weight = loss_fn.weight.detach().cpu().double()  # in this order: MPS has no float64
    return float(weight[valid.cpu()].sum())
