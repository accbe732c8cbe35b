"""Layers are dealt by what their eigenvalues cost, and united in rounds of limited size."""

from itertools import chain

import pytest
from torch import nn

from condexp.analysis.layers.select import describe, select_layers
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.ranks import deal, rounds, solving_cost, sum_bytes


def test_no_rank_has_more_than_another_by_more_than_its_smallest_layer() -> None:
    costs = {str(side): float(side**3) for side in (16, 27, 144, 144, 288, 289, 290, 576, 577, 578)}
    for num_ranks in (1, 2, 3, 20):
        dealt = deal(costs, num_ranks)
        assert sorted(chain(*dealt)) == sorted(costs)
        assert [sorted(names, key=costs.get, reverse=True) for names in dealt] == dealt  # type: ignore[arg-type]
        totals = [sum(costs[name] for name in names) for names in dealt]
        for names, total in zip(dealt, totals, strict=True):
            # When its last layer was dealt, no other had less.
            assert total - (costs[names[-1]] if names else 0) <= min(totals)


def test_layers_without_a_cost_are_shared_out_too() -> None:
    assert [len(names) for names in deal(dict.fromkeys("abcdef", 0.0), 3)] == [2, 2, 2]


def test_a_round_exceeds_its_limit_by_one_layer_only_alone() -> None:
    sizes = {"a": 4, "b": 7, "c": 3, "d": 20, "e": 1, "f": 2}
    found = list(rounds([["a", "b", "c"], ["d", "e", "f"], []], sizes, at_once=10))
    assert found == [[["a"], ["d"], []], [["b", "c"], ["e", "f"], []]]


@pytest.mark.parametrize(
    ("module", "positions", "cost"),
    [
        (nn.Linear(100, 10), 1, 64**3 + 10**3),  # of 64 rows
        (nn.Conv2d(4, 6, 3, groups=2), 5, 2 * (18**3 + 3**3)),
        (nn.Embedding(1000, 8), 3, 8**3),  # counts are no matrix
    ],
)
def test_the_cost_is_that_of_the_smaller_sides(
    module: nn.Module, positions: int, cost: float
) -> None:
    options = AnalysisOptions()
    [(name, layer)] = select_layers(nn.Sequential(module), options).layers.items()
    info = describe(name, layer, options, positions=positions)
    assert solving_cost(layer, info, num_samples=64) == cost
    assert sum_bytes(info) > 0
