"""What the page of a run draws: its measures, spectra and curves, packed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.analysis.vocabulary import LAYER_MEASURES, Matrix
from condexp.results.layer_measures import LayerMeasures
from condexp.results.layer_names import short_names
from condexp.results.page.packing import pack_codes, pack_numbers
from condexp.results.page.thinning import (
    BITS,
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
from condexp.results.tables.numbers import Mark
from condexp.store.reader import Run
from condexp.store.schema.fields import (
    CERTIFICATE_NAMES,
    MATRIX_NAMES,
    MEASURE_NAMES,
    WITHOUT_SPECTRA,
)

MARKS = (Mark.NONE, *EXPLANATIONS, Mark.MISSING)
LINEAR = frozenset({"rank", "effective_rank", "stable_rank", *LAYER_MEASURES[4:]})
FEW_VALUES = 200_000  # eigenvalues that are kept in six digits
ENDS = ("kappa_low", "kappa_high")
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
}


class Packed:
    """What was packed, and what was left out of it.

    Attributes:
        data: Plain values for the page's JSON.
        blobs: Base64 texts by name.
        notes: What was thinned, a sentence each.
    """

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.blobs: dict[str, str] = {}
        self.notes: list[str] = []


def pack_run(run: Run, measures: LayerMeasures, worst: Sequence[int]) -> Packed:
    """Pack what the page of a run draws.

    Args:
        run: The run.
        measures: Its measures.
        worst: Its layers' places, the worst-conditioned first.

    Returns:
        All of it.
    """
    packed = Packed()
    packed.data["layers"] = list(measures.layers)
    packed.data["types"] = list(map(str, measures.arrays["type"]))
    packed.data["short"] = short_names(measures.layers)
    packed.data["first_layer"] = worst[0] if worst else 0
    packed.data["fractions"] = list(measures.fractions)
    packed.data["matrices"] = [
        {"key": str(m), "symbol": SYMBOLS.get(m, m), "name": _matrix_name(m)}
        for m in measures.matrices
    ]
    packed.data["marks"] = [
        {"sign": str(mark), "text": EXPLANATIONS.get(mark, "")} for mark in MARKS
    ]
    _pack_curves(packed, run.metrics)
    packed.data["steps"] = measures.steps.tolist()
    if len(measures.steps) and measures.layers:
        _pack_measures(packed, measures)
        _pack_spectra(packed, run, measures, worst)
    return packed


def _matrix_name(matrix: str) -> str:
    return MATRIX_NAMES[Matrix(matrix)]


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


def _quantities(data: LayerMeasures) -> list[dict[str, Any]]:
    """Return what can be drawn: a measure each, without the ends of κ."""
    found: list[dict[str, Any]] = []
    for key, measure in data.measures.items():
        suffix = measure.array.removeprefix(f"{measure.matrix}_")
        if measure.matrix is not None and suffix in ENDS:
            continue
        name = NAMES.get(suffix) or (MEASURE_NAMES | CERTIFICATE_NAMES).get(suffix, suffix)
        p = None if measure.p is None else data.fractions[measure.p]
        found.append({
            "key": key,
            "matrix": measure.matrix or "",
            "quantity": suffix,
            "name": name,
            "p": p,
            "log": suffix not in LINEAR,
        })
    for matrix in data.matrices:
        floor = {"key": f"{matrix}_noise_floor", "matrix": matrix, "quantity": "noise_floor"}
        found.append(floor | {"name": NAMES["noise_floor"], "p": None, "log": True})
    return found


def _pack_measures(packed: Packed, data: LayerMeasures) -> None:
    quantities = _quantities(data)
    ends = [
        (quantity, f"{quantity['matrix']}_{end}_{quantity['p']}")
        for quantity in quantities
        if quantity["p"] is not None
        for end in ENDS
        if f"{quantity['matrix']}_{end}_{quantity['p']}" in data.measures
    ]
    values = np.array([_values(data, q["key"]) for q in quantities], dtype=np.float64)
    high_low = np.array([data.values(key) for _, key in ends], dtype=np.float64)
    shape = len(data.steps), len(data.layers)
    values, high_low = values.reshape(-1, *shape), high_low.reshape(-1, *shape)
    marks = np.array([_codes(data, q["key"]) for q in quantities], np.uint8).reshape(-1, *shape)
    for plan in measure_plans():
        rows = kept_rows(shape[0], plan.every)
        least = len(rows) <= 2  # the first and the last are in any page
        parts = [values, high_low] if plan.intervals else [values]
        kept = np.concatenate(parts)[:, rows]
        if LETTERS_EACH[plan.bits] * kept.size > 2 * MEASURE_LETTERS and not least:
            continue
        blobs = {"measures": pack_numbers(kept, plan.bits), "marks": pack_codes(marks[:, rows])}
        if sum(map(len, blobs.values())) <= MEASURE_LETTERS or (least and not plan.intervals):
            break
    packed.blobs |= blobs
    for number, (quantity, key) in enumerate(ends if plan.intervals else []):
        quantity["low" if "_low_" in key else "high"] = len(quantities) + number
    packed.data |= {
        "measures": quantities,
        "steps": data.steps[rows].tolist(),
        "digits": plan.digits,
    }
    packed.notes += _measure_notes(plan, data.steps, rows, bool(ends))


def _measure_notes(
    plan: MeasurePlan, steps: NDArray[np.int64], rows: NDArray[np.int64], has_ends: bool
) -> list[str]:
    notes = []
    if len(rows) < len(steps):
        notes.append(f"Of {len(steps)} snapshots {len(rows)} are kept here.")
    if plan.bits < BITS[0]:
        percent = 100 * 2.0 ** -(plan.bits + 1)
        notes.append(f"Numbers are rounded to within {percent:.2f} %, and written in three digits.")
    if has_ends and not plan.intervals:
        notes.append("Of the intervals of κ only those in the table of the worst layers are kept.")
    return notes


def _values(data: LayerMeasures, key: str) -> NDArray[np.float64]:
    return data.arrays[key] if key.endswith("_noise_floor") else data.values(key)


def _codes(data: LayerMeasures, key: str) -> NDArray[np.uint8]:
    """Return a measure's marks as places in `MARKS`."""
    if key.endswith("_noise_floor"):
        return np.where(np.isfinite(data.arrays[key]), 0, MARKS.index(Mark.MISSING)).astype("u1")
    marks = data.marks(key)
    codes = np.zeros(marks.shape, np.uint8)
    for code, mark in enumerate(MARKS):
        codes[marks == mark] = code
    return codes


def _pack_spectra(packed: Packed, run: Run, data: LayerMeasures, worst: Sequence[int]) -> None:
    """Pack eigenvalues, where they were saved."""
    matrices = [m for m in data.matrices if m not in WITHOUT_SPECTRA]
    order = list(dict.fromkeys([*worst[:8], *_ends(len(data.layers)), *worst]))
    lengths = np.array([data.arrays[f"n_{m}"][order] for m in matrices]).reshape(len(matrices), -1)
    plan = spectrum_plan(lengths, len(data.steps))
    rows, wanted = plan.rows(len(data.steps)), set(order[: plan.layers])
    blocks: list[NDArray[np.float64]] = []
    found: list[dict[str, Any]] = []
    offset = 0
    for matrix in matrices if len(rows) else ():
        for group in run.spectra(matrix, rows.tolist(), plan.indices):
            members = [place for place, layer in enumerate(group.layers) if layer in wanted]
            if not members:
                continue
            values = group.values[:, members].transpose(1, 2, 0)  # [layers, kept, snapshots]
            found.append({
                "matrix": str(matrix),
                "layers": [group.layers[place] for place in members],
                "length": group.length,
                "kept": group.kept.tolist() if len(group.kept) < group.length else None,
                "offset": offset // len(rows),  # of its first column
            })
            blocks.append(values.ravel())
            offset += values.size
    if not found:
        return
    bits = BITS[offset > FEW_VALUES]
    packed.blobs["spectra"] = pack_numbers(_columns(blocks, len(rows)), bits)
    columns = offset // len(rows)
    packed.data["spectra"] = {
        "steps": data.steps[rows].tolist(),
        "groups": found,
        "columns": columns,
    }
    packed.notes += _spectrum_notes(plan, lengths, len(data.steps), len(rows))


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
