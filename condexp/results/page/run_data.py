"""What the page of a run draws: its measures, spectra and curves, packed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.analysis.vocabulary import CLOSENESS, CURVATURE_MATRICES, FRACTIONS, Matrix
from condexp.results.page.curvature_data import pack_curvature, pack_sharpness
from condexp.results.page.packing import Packed, pack_codes, pack_numbers
from condexp.results.page.rows import MARKS, Rows
from condexp.results.page.thinning import (
    BITS,
    FEW_VALUES,
    LETTERS_EACH,
    MEASURE_LETTERS,
    MeasurePlan,
    SpectrumPlan,
    kept_rows,
    measure_plans,
    spectrum_plan,
    thinned,
)
from condexp.results.run_view import EXPLANATIONS, SYMBOLS
from condexp.store.reader import Run
from condexp.store.schema.fields import (
    CERTIFICATE_NAMES,
    CLOSENESS_NAMES,
    CURVATURE_NAMES,
    MATRIX_NAMES,
    MEASURE_NAMES,
    WITHOUT_SPECTRA,
)

LINEAR = frozenset({
    *("rank", "effective_rank", "stable_rank", *FRACTIONS),
    *("negative_share", "num_products", *CLOSENESS),
})
ENDS = ("kappa_low", "kappa_high")
ERROR = "_error"
NAMES = {
    "lambda_max": "λ<sub>max</sub>, the largest eigenvalue",
    "lambda_min": "λ<sub>min</sub>, the smallest eigenvalue",
    "trace": "trace, the sum of the eigenvalues",
    "rank": "rank, the eigenvalues above the noise floor",
    "kappa_rank": "κ<sub>rank</sub>, λ<sub>max</sub> over the smallest above the noise floor",
    "effective_rank": "effective rank, exp of the spectrum's entropy",
    "stable_rank": "stable rank, trace over λ<sub>max</sub>",
    "kappa": "κ<sub>p</sub>, the condition number",
    "noise_floor": "noise floor, below which an eigenvalue counts as 0",
    "frobenius_norm": "‖·‖<sub>F</sub>, the root of the sum of the squared eigenvalues",
    "negative_share": "negative share, Σ|λ| of the negative eigenvalues over that of all",
    "density_scale": "max|λ|, the largest modulus of an eigenvalue",
}


def pack_run(run: Run, rows: Rows, worst: Sequence[int]) -> Packed:
    """Pack what the page of a run draws.

    Args:
        run: The run.
        rows: Its measures.
        worst: Its layers' places, the worst-conditioned first.

    Returns:
        All of it.
    """
    packed = Packed()
    packed.data["layers"] = rows.names
    packed.data["types"] = rows.types
    packed.data["short"] = rows.short_names
    packed.data["num_layers"] = len(rows.layers.layers)
    packed.data["first_layer"] = worst[0] if worst else 0
    packed.data["fractions"] = list(rows.layers.fractions)
    packed.data["matrices"] = [
        {"key": m, "symbol": SYMBOLS[m], "name": MATRIX_NAMES[Matrix(m)]}
        | {"of_layers": of_layers, "of_network": of_network}
        for m, (of_layers, of_network) in rows.matrices.items()
    ]
    packed.data["marks"] = [
        {"sign": str(mark), "text": EXPLANATIONS.get(mark, "")} for mark in MARKS
    ]
    _pack_curves(packed, run.metrics)
    pack_sharpness(packed, run)
    packed.data["steps"] = rows.layers.steps.tolist()
    if len(rows.layers.steps) and rows.layers.layers:
        _pack_measures(packed, rows)
        _pack_spectra(packed, run, rows, worst)
        pack_curvature(packed, rows, worst)
    return packed


def _pack_curves(packed: Packed, metrics: pd.DataFrame) -> None:
    curves: dict[str, Any] = {}
    long = 0
    for name in metrics.columns.drop("epoch"):
        column = metrics[name].dropna()
        steps, values = thinned(column.index.to_numpy(), column.to_numpy(dtype=float))
        long = max(long, len(column) if len(steps) < np.isfinite(column).sum() else 0)
        curves[name] = {"step": steps.tolist(), "value": [float(f"{v:.6g}") for v in values]}
    packed.data["curves"] = curves
    if long:
        packed.notes.append(
            f"Of the {long} training steps, loss and learning rate are drawn by the smallest and "
            "the largest value of each stretch."
        )


def _quantities(rows: Rows) -> list[dict[str, Any]]:
    """Return what can be drawn: a measure each, without the ends of κ and without errors."""
    found: list[dict[str, Any]] = []
    for key, measure in rows.measures.items():
        suffix = measure.array.removeprefix(f"{measure.matrix}_")
        if measure.matrix is not None and (suffix in ENDS or suffix.endswith(ERROR)):
            continue
        names = MEASURE_NAMES | CERTIFICATE_NAMES | CLOSENESS_NAMES | CURVATURE_NAMES
        log = suffix not in LINEAR
        if measure.matrix in CURVATURE_MATRICES:  # of either sign
            log &= not (rows.values(key) < 0).any()
        found.append({
            "key": key,
            "matrix": measure.matrix or "",
            "quantity": suffix,
            "name": NAMES.get(suffix) or names.get(suffix, suffix),
            "p": None if measure.p is None else rows.layers.fractions[measure.p],
            "log": bool(log),
        })
    for matrix in (m for m in rows.matrices if m not in CURVATURE_MATRICES):
        floor = {"key": f"{matrix}_noise_floor", "matrix": matrix, "quantity": "noise_floor"}
        found.append(floor | {"name": NAMES["noise_floor"], "p": None, "log": True})
    return found


def _beside(rows: Rows, quantity: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what stands beside a measure, and its name: the ends of its interval, or its error."""
    keys = {"error": f"{quantity['key']}{ERROR}"}
    if quantity["p"] is not None:
        keys |= {e.rpartition("_")[2]: f"{quantity['matrix']}_{e}_{quantity['p']}" for e in ENDS}
    yield from ((role, key) for role, key in keys.items() if key in rows.measures)


def _pack_measures(packed: Packed, rows: Rows) -> None:
    quantities = _quantities(rows)
    beside = [(q, role, key) for q in quantities for role, key in _beside(rows, q)]
    shape = len(rows.layers.steps), len(rows.names)

    def stacked(keys: Sequence[str]) -> NDArray[np.float64]:
        return np.array([rows.values(key) for key in keys], np.float64).reshape(-1, *shape)

    values, values_beside = (
        stacked([q["key"] for q in quantities]),
        stacked([k for *_, k in beside]),
    )
    marks = np.array([rows.codes(q["key"]) for q in quantities], np.uint8).reshape(-1, *shape)
    for plan in measure_plans():
        kept_at = kept_rows(shape[0], plan.every)
        least = len(kept_at) <= 2  # the first and the last are in any page
        parts = [values, values_beside] if plan.intervals else [values]
        kept = np.concatenate(parts)[:, kept_at]
        if LETTERS_EACH[plan.bits] * kept.size > 2 * MEASURE_LETTERS and not least:
            continue
        blobs = {"measures": pack_numbers(kept, plan.bits), "marks": pack_codes(marks[:, kept_at])}
        if sum(map(len, blobs.values())) <= MEASURE_LETTERS or (least and not plan.intervals):
            break
    packed.blobs |= blobs
    for number, (quantity, role, _) in enumerate(beside if plan.intervals else []):
        quantity[role] = len(quantities) + number
    packed.data |= {
        "measures": quantities,
        "steps": rows.layers.steps[kept_at].tolist(),
        "digits": plan.digits,
    }
    packed.notes += _measure_notes(plan, shape[0], len(kept_at), {role for _, role, _ in beside})


def _measure_notes(plan: MeasurePlan, num: int, num_kept: int, beside: set[str]) -> list[str]:
    notes = []
    if num_kept < num:
        notes.append(f"Of {num} snapshots {num_kept} are kept here.")
    if plan.bits < BITS[0]:
        percent = 100 * 2.0 ** -(plan.bits + 1)
        notes.append(f"Numbers are rounded to within {percent:.2f} %, and written in three digits.")
    if "low" in beside and not plan.intervals:
        notes.append("Of the intervals of κ only those in the table of the worst layers are kept.")
    if "error" in beside and not plan.intervals:
        notes.append("The errors of traces and shares are not kept.")
    return notes


def _pack_spectra(packed: Packed, run: Run, rows: Rows, worst: Sequence[int]) -> None:
    """Pack eigenvalues, where they were saved."""
    data = rows.layers
    matrices = [m for m in data.matrices if m not in WITHOUT_SPECTRA]
    order = list(dict.fromkeys([*worst[:8], *_ends(len(data.layers)), *worst]))
    own = [data.arrays[f"n_{m}"][order] for m in matrices]
    lengths = np.array(own, np.int64).reshape(-1, len(order))
    plan = spectrum_plan(lengths, len(data.steps))
    kept_at, wanted = plan.rows(len(data.steps)), set(order[: plan.layers])
    blocks: list[NDArray[np.float64]] = []
    found: list[dict[str, Any]] = []
    offset = 0
    for matrix in matrices if len(kept_at) else ():
        for group in run.spectra(matrix, kept_at.tolist(), plan.indices):
            members = [place for place, layer in enumerate(group.layers) if layer in wanted]
            if not members:
                continue
            values = group.values[:, members].transpose(1, 2, 0)  # [layers, kept, snapshots]
            found.append({
                "matrix": str(matrix),
                "layers": [group.layers[place] for place in members],
                "length": group.length,
                "kept": group.kept.tolist() if len(group.kept) < group.length else None,
                "offset": offset // len(kept_at),  # of its first column
            })
            blocks.append(values.ravel())
            offset += values.size
    if rows.network is not None and "fisher_eigenvalue" in rows.network.arrays:
        network = len(data.layers)
        values = rows.several("fisher_eigenvalue", kept_at, [network])
        at = plan.indices(values.shape[-1])
        found.append({
            "matrix": "fisher",
            "layers": [network],
            "length": values.shape[-1],
            "kept": at.tolist() if len(at) < values.shape[-1] else None,
            "offset": offset // len(kept_at),
        })
        blocks.append(values[..., at].transpose(1, 2, 0).ravel())
        offset += blocks[-1].size
    if not found:
        return
    bits = BITS[offset > FEW_VALUES]
    packed.blobs["spectra"] = pack_numbers(_columns(blocks, len(kept_at)), bits)
    columns = offset // len(kept_at)
    packed.data["spectra"] = {
        "steps": data.steps[kept_at].tolist(),
        "groups": found,
        "columns": columns,
    }
    packed.notes += _spectrum_notes(plan, lengths, len(data.steps), len(kept_at))


def _ends(num: int) -> list[int]:
    return [0, num - 1] if num else []


def _columns(blocks: Sequence[NDArray[np.float64]], num_rows: int) -> NDArray[np.float64]:
    """Return ``[snapshots, eigenvalues]`` of blocks whose last axis was the snapshots."""
    return np.concatenate([block.reshape(-1, num_rows) for block in blocks]).T


def _spectrum_notes(
    plan: SpectrumPlan, lengths: NDArray[np.int64], num: int, num_kept: int
) -> list[str]:
    notes = []
    if num_kept < num:
        notes.append(f"Spectra are kept at {num_kept} of {num} snapshots.")
    if lengths.max(initial=0) > plan.points:
        notes.append(
            f"Of a spectrum longer than {plan.points} about {plan.points} eigenvalues are kept."
        )
    if plan.layers is not None and plan.layers < lengths.shape[1]:
        notes.append(f"Spectra are kept of {plan.layers} layers, the worst-conditioned ones.")
    return notes
