"""Condition numbers at fractions that were not measured, from the eigenvalues that were stored."""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from condexp.analysis.linalg.pair_products import Numbers
from condexp.analysis.linalg.ratios import (
    KnownEigenvalues,
    kappa_index,
    kronecker_kappa,
    p_limit,
)
from condexp.analysis.vocabulary import Matrix
from condexp.store.schema.matrices import KAPPAS

# float16, bfloat16, tfloat32, float32 and float64, by their names in the file.
EPS = {
    "float16": 2**-10,
    "bfloat16": 2**-7,
    "tfloat32": 2**-10,
    "float32": 2**-23,
    "float64": 2**-52,
}
NONE = (np.nan,) * len(KAPPAS)


def with_fractions(
    table: xr.Dataset,
    p: Sequence[float],
    spectrum: Callable[[Matrix, int], Numbers],
    num_signals: int,
) -> xr.Dataset:
    """Put condition numbers at other fractions in the place of the measured ones.

    Args:
        table: ``measures()`` of a run, or ``network()``.
        p: The fractions, each in (0, 1].
        spectrum: The eigenvalues ``[S, n]`` of a matrix of the layer of this index.
        num_signals: Gradients that each row of an input comes with.

    Returns:
        The table with ``p`` as given. Numbers at a fraction that was measured are those; between
        two of them an interval is no wider than both leave it. ``kfac`` of a grouped convolution is
        NaN, for its stored eigenvalues do not tell the groups apart, and so is ``ekfac``, which has
        none.

    Raises:
        InputError: If a fraction is not in (0, 1], or the spectra were not saved.
    """
    for fraction in p:
        kappa_index(fraction, 1)  # raises where it is none
    dims = {dim: table.sizes[dim] for dim in ("step", "layer") if dim in table.sizes}
    measured = [
        Matrix(str(name)[: -len("_kappa")]) for name in table if str(name).endswith("_kappa")
    ]
    arrays: dict[str, xr.Variable] = {}
    for matrix in measured:
        names = [f"{matrix}_{kappa}" for kappa in KAPPAS if f"{matrix}_{kappa}" in table]
        found = np.full((*dims.values(), len(p), len(KAPPAS)), np.nan)
        for place in range(dims.get("layer", 1)):
            own = table.isel(layer=place) if "layer" in dims else table
            values = _of_layer(own, matrix, place, p, spectrum, num_signals)
            found[(slice(None), place) if "layer" in dims else slice(None)] = values
        for index, name in enumerate(names):
            arrays[name] = xr.Variable((*dims, "p"), found[..., index], table[name].attrs)
    kept = table.drop_vars([*arrays, "p"])
    return kept.assign(arrays).assign_coords(p=("p", list(map(float, p)), table["p"].attrs))


def _of_layer(
    own: xr.Dataset,
    matrix: Matrix,
    place: int,
    p: Sequence[float],
    spectrum: Callable[[Matrix, int], Numbers],
    num_signals: int,
) -> Numbers:
    """Return ``[S, P, 3]``: κ_p, and the ends of its interval."""
    kappas = [own.get(f"{matrix}_{kappa}") for kappa in KAPPAS]
    stored = np.stack([np.full(kappas[0].shape, np.nan) if k is None else k for k in kappas], -1)  # type: ignore[union-attr]
    known = [float(fraction) for fraction in own["p"]]
    found = np.full((len(own["step"]), len(p), len(KAPPAS)), np.nan)
    factors: list[list[KnownEigenvalues | None]] = []
    if not set(p) <= set(known):
        parts = (Matrix.INPUT, Matrix.GRAD_OUTPUT) if matrix is Matrix.KFAC else (matrix,)
        is_known = matrix is not Matrix.EKFAC
        if is_known and (matrix is not Matrix.KFAC or int(own["groups"]) == 1):
            factors = [_eigenvalues(own, part, place, spectrum, num_signals) for part in parts]
    for column, fraction in enumerate(p):
        if fraction in known:
            found[:, column] = stored[:, known.index(fraction)]
            continue
        for row, spectra in enumerate(zip(*factors, strict=True)):
            some = [each for each in spectra if each is not None]
            if len(some) == len(factors):
                single = some[0].kappa(fraction) if len(some) == 1 else None
                values = single or kronecker_kappa(some[0], some[1], fraction)
                found[row, column] = _between(values, stored[row], known, fraction)
    return found


def _eigenvalues(
    own: xr.Dataset,
    matrix: Matrix,
    place: int,
    spectrum: Callable[[Matrix, int], Numbers],
    num_signals: int,
) -> list[KnownEigenvalues | None]:
    """Return what is known at each snapshot; None where the spectrum's status is not ok."""
    statuses = own[f"{matrix}_status"].to_numpy()
    if not (statuses == "ok").any():
        return [None] * len(statuses)
    values = spectrum(matrix, place)
    share = 1.0
    if "num_rows" in own:
        centered = bool(own.attrs.get("center"))
        rows, gradients = (n * int(own["num_rows"]) - centered for n in (1, num_signals))
        d_in, d_out, groups = (int(own[name]) for name in ("d_in", "d_out", "groups"))
        share = p_limit(matrix, d_in, d_out, groups, rows, gradients)
    floors, dtypes = own[f"{matrix}_noise_floor"].to_numpy(), own[f"{matrix}_dtype"].to_numpy()
    return [
        KnownEigenvalues.of(row, float(floor), EPS[str(dtype)], share) if status == "ok" else None
        for row, floor, dtype, status in zip(values, floors, dtypes, statuses, strict=True)
    ]


def _between(
    values: tuple[float, float, float], stored: Numbers, known: Sequence[float], p: float
) -> tuple[float, float, float]:
    # κ_p never falls as p grows: the intervals at the fractions beside it narrow this one.
    kappa, low, high = values
    for fraction, (_, least, most) in zip(known, stored, strict=True):
        if fraction < p and least > low:
            low = least
        elif fraction > p and most < high:
            high = most
    return (max(kappa, low) if np.isfinite(high) else low), low, max(low, high)
