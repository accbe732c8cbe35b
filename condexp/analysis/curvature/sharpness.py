"""Sharpness: the largest eigenvalue of the Hessian, followed from step to step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condexp.analysis.curvature.measure import check_memory, on_device, trained_parameters
from condexp.analysis.curvature.passes import CurvatureProducts, LossPass
from condexp.analysis.linalg.curvature_spectrum import ASYMMETRIC, rounding
from condexp.analysis.linalg.tracking import num_bytes, track_largest
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix

SHARPNESS = "sharpness"
"""The name of its vectors, beside those of the matrices."""


@dataclass(frozen=True, eq=False)
class Sharpness:
    """λ_max of the Hessian of a loss, with respect to all trained parameters.

    Attributes:
        value: λ_max, no larger than it but for rounding; NaN where the network has diverged, or the
            products are not those of a symmetric matrix.
        error: An eigenvalue lies within this of it: a residual ‖Hx − θx‖, and rounding.
        num_products: Products with a vector that it took.
        vectors: To start the next search from, float32 ``[n, m]`` on the CPU; None where it is NaN.
    """

    value: float
    error: float
    num_products: int
    vectors: Tensor | None


def measure_sharpness(
    model: nn.Module,
    passes: Sequence[LossPass],
    options: AnalysisOptions,
    start: Tensor | None,
) -> Sharpness:
    """Measure λ_max of the Hessian by a few products, from where it was the last time.

    The caller preserves the model's state, and enables gradients.

    Args:
        model: The network.
        passes: The batches.
        options: ``seed`` and ``memory_limit`` are read.
        start: The last one's ``vectors``; those of another network are not used.

    Returns:
        λ_max and its error.

    Raises:
        InputError: If the network's precision is too low, or it cannot be differentiated twice.
    """
    parameters = trained_parameters(model)
    num_weights = sum(parameter.numel() for parameter in parameters)
    check_memory("analysis.sharpness", num_bytes(num_weights), num_weights, options.memory_limit)
    products = CurvatureProducts(model, passes, parameters, [Matrix.HESSIAN])
    if start is not None and len(start) != num_weights:
        start = None
    found = track_largest(
        products.of(Matrix.HESSIAN, parameters),
        num_weights,
        start,
        generator=torch.Generator().manual_seed(options.seed),
        device=on_device(parameters[0]),
    )
    if not found.asymmetry <= ASYMMETRIC * found.largest:  # or NaN
        return Sharpness(math.nan, math.nan, found.num_products, None)
    return Sharpness(
        value=found.value,
        error=found.residual + rounding(found.largest, found.asymmetry, parameters[0].dtype),
        num_products=found.num_products,
        vectors=found.vectors.float().cpu(),
    )
