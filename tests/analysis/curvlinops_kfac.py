"""The factors of another library's KFAC-expand, the empirical Fisher's."""

import warnings
from collections.abc import Sequence
from typing import Any

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
        kfac_approx=curvlinops.KFACType.EXPAND,
        separate_weight_and_bias=not joint_bias,
        check_deterministic=False,
    )
    kfac.compute_kronecker_factors()
    state = kfac.state_dict()
    return state["input_covariances"], state["gradient_covariances"]
