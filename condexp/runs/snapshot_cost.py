"""What a snapshot will take, said before it is taken: time, by rates measured here, and memory."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch

from condexp.analysis.effort import Effort, snapshot_effort
from condexp.analysis.fisher.memory import needed_bytes
from condexp.analysis.linalg.curvature_spectrum import SearchEffort
from condexp.analysis.linalg.krylov import MOST_PRODUCTS
from condexp.analysis.linalg.tracking import num_bytes
from condexp.analysis.statistics.moment import WAITING_BYTES
from condexp.analysis.vocabulary import CURVATURE_MATRICES
from condexp.runs.prepare import PreparedRun
from condexp.training.choices import Source

PRODUCT_STEPS = "2.5 to 3.5"  # measured on ResNet-20: python -m benchmarks sharpness
_LARGEST = 768  # side of the matrices that are measured: they take some hundredths of a second
_TWICE_AS_QUICK = 4096  # side of a matrix whose eigenvalues are solved at twice that rate


@dataclass(frozen=True)
class Rates:
    """Floating-point operations a second of this process, as it is."""

    products: float
    solves: float

    @classmethod
    def measured(cls) -> "Rates":
        """Measure them.

        Returns:
            The rates.
        """
        # Of numbers that are no random ones: nobody's generator is touched.
        places = torch.arange(_LARGEST, dtype=torch.float64)
        matrix = torch.cos(torch.outer(places, places))
        matrix = matrix @ matrix.mT
        products = 2 * _LARGEST**3 / _quickest(lambda: matrix @ matrix)
        solves = 4 / 3 * _LARGEST**3 / _quickest(lambda: torch.linalg.eigvalsh(matrix))
        return cls(products, solves)

    def seconds(self, effort: Effort) -> float:
        """Return the time of some operations, to about a factor of 2."""
        quicker = 1 + min(1.0, max(0, effort.largest - _LARGEST) / (_TWICE_AS_QUICK - _LARGEST))
        return effort.products / self.products + effort.solves / (self.solves * quicker)


def _quickest(work: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(3))


@dataclass(frozen=True)
class SnapshotMemory:
    """Bytes of a snapshot.

    Attributes:
        kept: Kept of all layers until it is complete.
        at_work: At work on a layer, at most.
        fisher: That the exact Fisher matrix and ``ekfac`` take.
        least: That it takes under the lowest ``memory_limit``.
    """

    kept: int
    at_work: int
    fisher: int = 0
    least: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.kept + max(self.at_work, self.fisher)


def snapshot_memory(prepared: PreparedRun) -> SnapshotMemory:
    """Add up the memory of a snapshot.

    Args:
        prepared: The checked experiment.

    Returns:
        Its bytes.
    """
    spec, costs = prepared.spec, prepared.costs
    at_work = max((cost.matrix_bytes + cost.row_bytes for cost in costs), default=0)
    # Those of a single batch wait for their eigenvalues, which are solved for together.
    at_work += min(WAITING_BYTES, sum(cost.matrix_bytes for cost in costs if not cost.in_batches))
    kept = sum(cost.kept_bytes for cost in costs)
    rows = [cost.fisher_bytes for cost in costs]
    if not any(rows):
        return SnapshotMemory(kept, at_work)
    batches, has_grams = costs[0].in_batches, spec.extent.network_length > 0

    def needed(rows: list[int]) -> int:
        about = rows, spec.num_samples, spec.num_signals
        return needed_bytes(*about, in_batches=batches, has_grams=has_grams)

    least, grams = needed(rows), needed([])
    # Without a limit the layers take their signals together; one signal passes layer by layer.
    takes = grams + (sum(rows) if batches or spec.num_signals > 1 else max(rows))
    limit = prepared.options.memory_limit
    return SnapshotMemory(kept, at_work, takes if limit is None else min(takes, limit), least)


def snapshot_cost(prepared: PreparedRun) -> str:
    """Say in a line what a snapshot takes, and all of them.

    Args:
        prepared: The checked experiment.

    Returns:
        The line; empty where nothing is measured.
    """
    num, costs, options = len(prepared.plan.snapshot_steps), prepared.costs, prepared.options
    if not (num and costs):
        return ""
    own_passes = prepared.source is Source.PROBE or options.in_float64
    side = prepared.spec.extent.network_length
    effort = snapshot_effort(costs, side, own_passes=own_passes)
    seconds = Rates.measured().seconds(effort)
    threads = torch.get_num_threads()
    beside = "beside products with a vector, " if options.wants_curvature else ""
    return (
        f"{beside}a snapshot takes about {_duration(seconds)} ({_operations(effort)}, {threads} "
        f"thread{'s' if threads > 1 else ''}) and {size(snapshot_memory(prepared).total)}; "
        f"all {num} about {_duration(num * seconds)}"
    )


def curvature_costs(prepared: PreparedRun) -> Iterator[str]:
    """Say in a line each what products with a vector take: of matrices, and of sharpness.

    Args:
        prepared: The checked experiment.

    Yields:
        The lines; none where nothing is measured by products.
    """
    options, plan = prepared.options, prepared.plan
    num_weights = sum(c.layer.d_out * (c.layer.fan_in or c.layer.d_in) for c in prepared.costs)
    matrices = [str(matrix) for matrix in CURVATURE_MATRICES if options.wants(matrix)]
    if matrices and plan.snapshot_steps:
        effort = SearchEffort(
            options.top_k,
            options.eigenvalue_tolerance,
            options.num_random_vectors,
            options.num_lanczos_steps,
        )
        blocks = len(matrices) * (1 + len(prepared.costs) * options.layer_blocks)
        estimates = options.num_random_vectors * options.num_lanczos_steps
        yield (
            f"{' and '.join(matrices)}: {blocks} blocks a snapshot, each {estimates} products with "
            f"a vector and up to {MOST_PRODUCTS} for eigenvalues, fewer from the second snapshot "
            f"on; a product takes {PRODUCT_STEPS} steps, the vectors "
            f"{size(effort.num_bytes(num_weights))}"
        )
    if plan.sharpness_every is not None:
        times = -(-plan.num_steps // plan.sharpness_every)
        yield (
            f"sharpness: {times} times 2 to 6 products with a vector, of {PRODUCT_STEPS} steps "
            f"each, more the first time; the vectors {size(num_bytes(num_weights))}"
        )


def _operations(effort: Effort) -> str:
    return f"{(effort.products + effort.solves) / 1e9:.2g} GFLOP"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1g} s" if seconds < 10 else f"{seconds:.0f} s"
    return (
        f"{timedelta(seconds=round(seconds))} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    )


def size(num_bytes: float) -> str:
    """Write a number of bytes.

    Args:
        num_bytes: The number.

    Returns:
        Three digits and a unit.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
