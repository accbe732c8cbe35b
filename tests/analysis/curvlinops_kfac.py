"""Another library's curvature: KFAC's factors of the empirical Fisher, and the GGN."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # A dependency of curvlinops compiles TorchScript at import, which torch deprecates.
    warnings.simplefilter("ignore")
    import curvlinops


def factors(
    model: nn.Module,
    loss_fn: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    joint_bias: bool,
    names: Sequence[str] | None = None,
    weight_sharing: str = "expand",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two factors of layers (all if not named): of the inputs and of the output gradients."""
    named = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    layers = [named[name] for name in (named if names is None else names)]
    kfac: Any = curvlinops.KFACLinearOperator(
        model,
        loss_fn,
        [parameter for layer in layers for parameter in layer.parameters()],
        [(inputs, targets)],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        kfac_approx=weight_sharing,
        separate_weight_and_bias=not joint_bias,
        check_deterministic=False,
    )
    kfac.compute_kronecker_factors()
    state = kfac.state_dict()
    return state["input_covariances"], state["gradient_covariances"]


def gauss_newton(
    model: nn.Module, loss_fn: nn.Module, inputs: Tensor, targets: Tensor, names: Sequence[str]
) -> Tensor:
    """The dense Gauss–Newton matrix of some layers' weights."""
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as at the import, for parts loaded late
        operator: Any = curvlinops.GGNLinearOperator(
            model, loss_fn, weights, [(inputs, targets)], check_deterministic=False
        )
        dense: Tensor = operator @ torch.eye(operator.shape[1], dtype=inputs.dtype)
    return dense
