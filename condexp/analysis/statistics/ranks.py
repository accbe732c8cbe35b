"""Which process computes the spectra of which layers, and when it gets what others have of them."""

from collections.abc import Iterator, Mapping, Sequence

from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.vocabulary import Matrix

AT_ONCE = 1 << 25
"""Bytes that one process gets at once of another: they should not fill its memory."""


def solving_cost(layer: Layer, info: LayerInfo, num_samples: int) -> float:
    """Return Σ n³ over a layer's matrices, n the smaller side: what eigenvalues cost.

    Args:
        layer: The layer.
        info: Its sizes.
        num_samples: Number N of samples of all processes.

    Returns:
        The sum; of the exact Fisher block, which has as many rows in all layers, nothing.
    """
    if not info.has_factors:
        return 0.0
    num_rows = num_samples * info.rows_per_sample
    # The moment of a table's input is diagonal.
    sides = [] if layer.operation.num_entries and not info.is_reduced else [info.d_in]
    sides.append(info.d_out // info.groups)
    return info.groups * sum(float(min(num_rows, side)) ** 3 for side in sides)


def sum_bytes(info: LayerInfo) -> int:
    """Return at most how many bytes a process has collected of a layer, Fisher rows not counted."""
    factors = (info.d_in, info.d_out // info.groups) if info.has_factors else ()
    num_weights = info.spectrum_length(Matrix.FISHER)
    return 8 * (info.groups * sum(side**2 for side in factors) // 2 + num_weights)


def deal(costs: Mapping[str, float], num_ranks: int) -> list[list[str]]:
    """Deal layers to processes, the costliest first, each to whoever has least to do so far.

    Args:
        costs: Of each layer, the same on every rank.
        num_ranks: The number of processes.

    Returns:
        Names for each rank.

    >>> deal({"conv": 1.0, "wide": 27.0, "fc": 8.0, "last": 8.0}, 2)
    [['wide'], ['fc', 'last', 'conv']]
    """
    dealt: list[list[str]] = [[] for _ in range(num_ranks)]
    totals = [0.0] * num_ranks
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        rank = min(range(num_ranks), key=lambda each: (totals[each], len(dealt[each])))
        dealt[rank].append(name)
        totals[rank] += costs[name]
    return dealt


def rounds(
    dealt: Sequence[Sequence[str]], num_bytes: Mapping[str, int], at_once: int = AT_ONCE
) -> Iterator[list[list[str]]]:
    """Divide what was dealt into rounds, so that no process gets too much at once.

    Args:
        dealt: Names for each rank.
        num_bytes: What one process sends of each.
        at_once: Bytes that a rank may get in a round, unless one layer alone has more.

    Yields:
        For each rank the names of a round, perhaps none.

    >>> list(rounds([["a", "b"], ["c"]], {"a": 6, "b": 5, "c": 1}, at_once=10))
    [[['a'], ['c']], [['b'], []]]
    """
    left = [list(names) for names in dealt]
    while any(left):
        portions = []
        for names in left:
            portion, total = names[:1], sum(num_bytes[name] for name in names[:1])
            while len(portion) < len(names) and total + num_bytes[names[len(portion)]] <= at_once:
                total += num_bytes[names[len(portion)]]
                portion.append(names[len(portion)])
            del names[: len(portion)]
            portions.append(portion)
        yield portions
