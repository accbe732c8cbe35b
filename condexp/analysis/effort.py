"""The operations of a snapshot, counted beforehand from the sizes of its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from condexp.analysis.costs import LayerCost
from condexp.analysis.linalg.estimate import NUM_STEPS, NUM_VECTORS
from condexp.analysis.linalg.gram import product_flops
from condexp.analysis.linalg.ratios import is_wide
from condexp.analysis.vocabulary import SINGULAR_VALUES, Matrix

_EIGENVECTORS = 3.0  # what eigenvectors cost, in eigenvalues


@dataclass(frozen=True)
class Effort:
    """Floating-point operations, by how quickly they go.

    Attributes:
        products: Of matrix products.
        solves: Of eigenvalues, which are bound by memory.
        largest: Side of the largest matrix that is solved.
    """

    products: float = 0.0
    solves: float = 0.0
    largest: int = 0

    def __add__(self, other: "Effort") -> "Effort":
        """Return those of both."""
        largest = max(self.largest, other.largest)
        return Effort(self.products + other.products, self.solves + other.solves, largest)


def snapshot_effort(
    costs: Sequence[LayerCost], network_side: int = 0, *, own_passes: bool
) -> Effort:
    """Count the operations of one snapshot.

    Args:
        costs: Its layers.
        network_side: Eigenvalues of the network's Fisher matrix; 0 where there is none.
        own_passes: Whether it takes passes of its own through the network.

    Returns:
        The operations, each matrix once: where ``auto`` takes one again, there are more.
    """
    total = sum((_layer(cost) for cost in costs), Effort())
    if network_side:
        total += _solved(costs[0].num_samples * costs[0].num_signals, wide=is_wide(network_side))
    if own_passes:
        total += sum((_passes(cost) for cost in costs), Effort())
    return total


def _layer(cost: LayerCost) -> Effort:
    layer, total = cost.layer, Effort()
    for matrix, sides in cost.sides.items():
        if sides.is_diagonal:
            continue
        side = min(sides.num_rows, sides.num_features)
        total += _solved(side, sides.groups, wide=sides.is_estimated)
        if matrix is Matrix.FISHER:
            total += Effort(_fisher_products(cost))
            continue
        products = 2.0 * sides.groups * sides.num_rows * sides.num_features * side
        share = cost.footprint.product_share if matrix is Matrix.INPUT else 1.0
        total += Effort(products * (1.0 if sides.is_dual else share))
    if Matrix.EKFAC in cost.matrices and layer.has_factors:
        total += _ekfac(cost)
    outputs, inputs = layer.d_out // layer.groups, layer.fan_in or layer.d_in
    for _ in SINGULAR_VALUES & set(cost.matrices):
        side = min(outputs, inputs)
        total += _solved(side, layer.groups, wide=is_wide(side))
        total += Effort(2.0 * layer.groups * side * outputs * inputs)
    return total


def _ekfac(cost: LayerCost) -> Effort:
    # Eigenvectors of both factors, and the projections of all rows and gradients.
    inputs, grads = cost.sides[Matrix.INPUT], cost.sides[Matrix.GRAD_OUTPUT]
    total = Effort(2.0 * inputs.groups * grads.num_rows * inputs.num_features * grads.num_features)
    for sides in (inputs, grads):
        side = min(sides.num_rows, sides.num_features)
        total += Effort(4.0 * sides.groups * sides.num_rows * sides.num_features * side)
        solved = _solved(side, sides.groups, wide=False)
        total += Effort(solves=_EIGENVECTORS * solved.solves, largest=solved.largest)
    return total


def _fisher_products(cost: LayerCost) -> float:
    layer = cost.layer
    positions = layer.positions * layer.uses
    return product_flops(
        layer.groups,
        layer.fan_in or layer.d_in,
        layer.d_out // layer.groups,
        num_rows=cost.num_samples * cost.num_signals,
        of_inputs=cost.num_samples * positions,
        of_grads=cost.num_samples * cost.num_signals * positions,
    ).cheapest


def _passes(cost: LayerCost) -> Effort:
    # Forward, backward, and backward to the layers' outputs for every further signal.
    layer = cost.layer
    rows = cost.num_samples * layer.positions * layer.uses
    further = cost.num_signals if cost.num_signals > 1 else 0
    return Effort(2.0 * rows * layer.d_out * (layer.fan_in or layer.d_in) * (3 + further))


def _solved(side: int, count: int = 1, *, wide: bool) -> Effort:
    if wide:
        return Effort(solves=2.0 * count * side**2 * NUM_VECTORS * NUM_STEPS, largest=side)
    return Effort(solves=4 / 3 * count * float(side) ** 3, largest=side)
