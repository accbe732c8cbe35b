"""The signal that is back-propagated: the data's labels, and the denominator of their loss."""

from torch import Tensor, nn

from condexp.errors import InputError


def loss_denominator(loss_fn: object, targets: object, num_samples: int) -> float:
    """Return D, the number by which a loss divides its sum over samples (``theory.md`` §2).

    ``g = D · ∂L/∂h`` is then the gradient of one sample's loss, whatever the reduction.

    Args:
        loss_fn: The loss. Cross-entropy and NLL modules with ``reduction="mean"`` divide by the
            valid targets or, where weighted, by their classes' weights; modules with ``"sum"`` by
            1; everything else, plain functions too, is taken as a mean over the samples.
        targets: What the loss is given; class indices ``[N, ...]`` or probabilities ``[N, C, ...]``
            for cross-entropy.
        num_samples: N.

    Returns:
        The denominator.

    Raises:
        InputError: If the loss has ``reduction="none"``.
    """
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
