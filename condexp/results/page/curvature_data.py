"""Eigenvalues and densities of the Hessian and the Gauss–Newton matrix, packed; the sharpness."""

from collections.abc import Iterable, Sequence

import numpy as np

from condexp.analysis.vocabulary import CURVATURE_MATRICES, DENSITY_POINTS
from condexp.results.page.packing import Packed, pack_numbers
from condexp.results.page.rows import Rows
from condexp.results.page.thinning import BITS, FEW_VALUES, spread, thinned
from condexp.results.sharpness import Edge, has_sharpness, sharpness_table
from condexp.store.reader import Run

VALUES = 400_000  # most of them are zeros of the densities
LEAST_SNAPSHOTS = 10
PARTS = ("eigenvalue", "eigenvalue_error", "density")


def pack_curvature(packed: Packed, rows: Rows, worst: Sequence[int]) -> None:
    """Pack the upper eigenvalues, their errors and the densities, where there are any.

    Args:
        packed: What gets them.
        rows: The run's measures.
        worst: Its layers' places, the worst-conditioned first.
    """
    matrices = [str(matrix) for matrix in CURVATURE_MATRICES if matrix in rows.matrices]
    if not matrices:
        return
    network = len(rows.names) - 1  # it is measured wherever a layer's block is
    order = [network, *(worst if rows.matrices[matrices[0]][0] else ())]
    num = len(rows.layers.steps)
    top = rows.several(f"{matrices[0]}_eigenvalue", np.arange(0), [network]).shape[-1]
    each = len(matrices) * (2 * top + len(DENSITY_POINTS) + 1)
    kept_at = spread(num, max(LEAST_SNAPSHOTS, VALUES // (each * len(order))))
    kept = order[: max(1, VALUES // (each * len(kept_at)))]
    blocks = []
    for matrix in matrices:
        blocks += [rows.several(f"{matrix}_{part}", kept_at, kept) for part in PARTS]
        blocks.append(rows.values(f"{matrix}_density_scale")[kept_at][:, kept, None])
    values = np.concatenate(blocks, axis=2)  # [snapshots, rows, matrices and their parts]
    flat = values.reshape(len(kept_at), -1)
    packed.blobs["curvature"] = pack_numbers(flat, BITS[values.size > FEW_VALUES])
    packed.data["curvature"] = {
        "steps": rows.layers.steps[kept_at].tolist(),
        "matrices": matrices,
        "rows": kept,
        "top": top,
        "points": [float(f"{point:.6g}") for point in DENSITY_POINTS],
    }
    if len(kept_at) < num or len(kept) < len(order):
        packed.notes.append(
            f"Eigenvalues and densities of {' and '.join(matrices)} are kept of {len(kept)} of "
            f"{len(order)} rows, at {len(kept_at)} of {num} snapshots."
        )


def pack_sharpness(packed: Packed, run: Run) -> None:
    """Put in λ_max of the network's Hessian over training and the edge of stability, where known.

    Args:
        packed: What gets them.
        run: The run.
    """
    if not has_sharpness(run):
        return
    table = sharpness_table(run)
    steps, _ = thinned(table["step"].to_numpy(), table["lambda_max"].to_numpy(dtype=float))
    kept, edge = table[table["step"].isin(steps)], Edge.of(run.config)
    packed.data["sharpness"] = {
        "step": kept["step"].tolist(),
        **{name: _plain(kept[name]) for name in ("lambda_max", "error", "edge")},
        "label": "" if edge is None else edge.label,
    }


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
