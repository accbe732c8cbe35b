"""The operations that are counted beforehand: by hand, against torch's counter, and in order."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import condexp
from condexp.analysis.costs import LayerCost, footprints
from condexp.analysis.effort import Effort, snapshot_effort
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.options import AnalysisOptions

FACTORS = ("input", "grad_output", "kfac")


def effort(
    model: nn.Module,
    shape: tuple[int, ...],
    num_samples: int,
    *,
    signals: int = 1,
    network: bool = False,
    own_passes: bool = False,
    **options: Any,
) -> Effort:
    chosen = AnalysisOptions(**options)
    inputs = torch.zeros(2, *shape)
    catalogue = trace_layers(model, inputs, chosen)
    with footprints(model, catalogue, chosen, 2) as found:
        model(inputs)
    costs = [
        LayerCost(each, found[each.name], num_samples, signals, chosen.matrices, num_samples)
        for each in catalogue.layers
    ]
    rows = num_samples * signals if network else 0
    return snapshot_effort(costs, rows, own_passes=own_passes)


def test_a_linear_layer_by_hand() -> None:
    found = effort(nn.Sequential(nn.Linear(30, 20)), (30,), 100, matrices=FACTORS)
    assert found.products == 2 * 100 * (30**2 + 20**2)
    assert found.solves == 4 / 3 * (30**3 + 20**3)
    assert found.largest == 30
    dual = effort(nn.Sequential(nn.Linear(30, 20)), (30,), 10, matrices=FACTORS)
    assert dual.products == 2 * 10**2 * (30 + 20)
    assert dual.solves == 4 / 3 * 2 * 10**3


def test_the_exact_fisher_by_hand() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    options: Any = {"matrices": ("fisher",), "fisher_type": "exact", "network": True}
    found = effort(model, (6,), 16, signals=4, **options)
    rows, weights = 64, 30
    # Formed; both sides of the block; the network's side alone is the rows'.
    assert found.products == 2 * rows * weights + 2 * rows**2 * weights + 2 * rows * weights**2
    assert found.solves == 4 / 3 * (weights**3 + rows**3)


def test_products_are_those_that_torch_counts() -> None:
    """Of matrix products alone: what the counter sees of an analysis without passes of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 40)
    )
    inputs, targets = torch.randn(60, 8, 8, 8), torch.arange(60) % 40
    options: Any = {"matrices": FACTORS, "precision": "float32"}
    with FlopCounterMode(display=False) as passes:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as both:
        condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, **options)
    counted = both.get_total_flops() - passes.get_total_flops()
    assert 0.5 < effort(model, (8, 8, 8), 60, **options).products / counted < 2


def test_more_of_anything_is_more_work() -> None:
    def of(width: int, num_samples: int, signals: int, *matrices: str) -> float:
        model = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 9))
        options: Any = {"matrices": matrices, "network": "fisher" in matrices, "own_passes": True}
        found = effort(model, (10,), num_samples, signals=signals, **options)
        return found.products + found.solves

    base = of(20, 40, 1, "kfac", "fisher")
    assert of(40, 40, 1, "kfac", "fisher") > base
    assert of(20, 80, 1, "kfac", "fisher") > base
    assert of(20, 40, 8, "kfac", "fisher") > 8 * base  # at least quadratic in the rows
    assert of(20, 40, 1, "kfac") < base
    assert of(20, 40, 1, "kfac", "fisher", "weight") > base


def test_an_estimate_costs_less_than_solving() -> None:
    wide, narrow = (
        effort(nn.Sequential(nn.Linear(side, 4)), (side,), 9000, matrices=("input",))
        for side in (8200, 8192)
    )
    assert wide.solves < narrow.solves / 4
