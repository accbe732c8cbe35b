"""The arrays of what is measured of a matrix: of each layer, and of the network as a whole."""

from collections.abc import Iterator

from condexp.analysis.vocabulary import (
    CURVATURE_MATRICES,
    CURVATURE_MEASURES,
    DENSITY_POINTS,
    LAYER_MEASURES,
    SPECTRUM_MEASURES,
    Matrix,
    has_closeness,
)
from condexp.store.schema.fields import (
    CERTIFICATE_NAMES,
    CLOSENESS_NAMES,
    CURVATURE_NAMES,
    MATRIX_NAMES,
    MEASURE_NAMES,
    NETWORK_CLOSENESS_NAMES,
    WITHOUT_SPECTRA,
    Axis,
    DatasetSpec,
    FileShape,
    Kind,
)

NETWORK = "network"  # the group of all layers together, and their name in tables
KAPPAS = ("kappa", "kappa_low", "kappa_high")  # of each matrix, for every fraction p
EIG_NAME = "0-based index of the eigenvalue, the largest first"


CURVATURE_SCALES = ("top", "point")
_ROWS = ("eigenvalue", "eigenvalue_error", "density")


def is_curvature_row(name: str) -> bool:
    """Return whether an array has a row of numbers for each matrix: eigenvalues, a density."""
    matrix, _, measure = name.partition("_")
    return matrix in [*map(str, CURVATURE_MATRICES)] and measure in _ROWS


def spectra_group(matrix: Matrix, length: int) -> str:
    """Name the group of the spectra of one length.

    Args:
        matrix: The matrix.
        length: Number of eigenvalues.

    Returns:
        The path of the group.

    >>> spectra_group(Matrix.INPUT, 512)
    'spectra/input/n00512'
    """
    return f"spectra/{matrix}/n{length:05d}"


def measures(extent: FileShape) -> Iterator[DatasetSpec]:
    """Yield the measures of every layer at every snapshot.

    Args:
        extent: The facts that decide names and shapes.

    Yields:
        The datasets in file order.
    """
    shape, dims = (extent.num_snapshots, len(extent.layers)), ("step", "layer")
    names = {measure: MEASURE_NAMES[measure] for measure in LAYER_MEASURES}
    if extent.version > 1:
        names |= CERTIFICATE_NAMES
    if has_closeness(extent.lengths):
        names |= CLOSENESS_NAMES
    for measure, name in names.items():
        yield DatasetSpec(f"layers/{measure}", shape, Kind.FLOAT, dims, name, axis=Axis.SNAPSHOT)
    for matrix in extent.lengths:
        yield from _matrix("layers", matrix, shape, dims, extent)
    if extent.layer_blocks:
        yield from _curvature("layers", shape, dims, extent)


def _matrix(
    group: str, matrix: Matrix, shape: tuple[int, ...], dims: tuple[str, ...], extent: FileShape
) -> Iterator[DatasetSpec]:
    """Yield the measures of one matrix."""
    kappas = KAPPAS if extent.version > 1 else KAPPAS[:1]
    kinds = dict.fromkeys((*SPECTRUM_MEASURES, "noise_floor", *kappas), Kind.FLOAT)
    kinds |= {
        "status": Kind.STATUS if extent.version > 1 else Kind.STATUS_1,
        "dtype": Kind.DTYPE,
    }
    for measure, kind in kinds.items():
        path = f"{group}/{matrix}_{measure}"
        name = f"{MEASURE_NAMES[measure]}: {MATRIX_NAMES[matrix]}"
        full = (*shape, extent.num_p) if measure in KAPPAS else shape
        names = (*dims, "p") if measure in KAPPAS else dims
        yield DatasetSpec(path, full, kind, names, name, axis=Axis.SNAPSHOT, matrix=matrix)


def _curvature(
    group: str, shape: tuple[int, ...], dims: tuple[str, ...], extent: FileShape
) -> Iterator[DatasetSpec]:
    """Yield the Hessian and the Gauss–Newton matrix: of each layer's block, or the network."""
    num_points = len(DENSITY_POINTS)
    yield DatasetSpec(f"{group}/top", (extent.top_k,), Kind.INT, ("top",), EIG_NAME)
    name = "place of the density, in units of density_scale"
    yield DatasetSpec(f"{group}/point", (num_points,), Kind.FLOAT, ("point",), name)
    for matrix in extent.curvature:
        of = MATRIX_NAMES[matrix]
        scalars = dict.fromkeys(CURVATURE_MEASURES, Kind.FLOAT)
        for measure, kind in (scalars | {"status": Kind.STATUS, "dtype": Kind.DTYPE}).items():
            name = f"{CURVATURE_NAMES.get(measure) or MEASURE_NAMES[measure]}: {of}"
            path = f"{group}/{matrix}_{measure}"
            yield DatasetSpec(path, shape, kind, dims, name, axis=Axis.SNAPSHOT, matrix=matrix)
        rows = {
            "eigenvalue": ("top", extent.top_k, "largest eigenvalues, descending"),
            "eigenvalue_error": ("top", extent.top_k, "an eigenvalue lies within this of each"),
            "density": ("point", num_points, "share of the eigenvalues at each point"),
        }
        for measure, (dim, length, name) in rows.items():
            path, full = f"{group}/{matrix}_{measure}", ((*shape, length), (*dims, dim))
            yield DatasetSpec(
                path, full[0], Kind.FLOAT, full[1], f"{name}: {of}", "1", Axis.SNAPSHOT, matrix
            )


def network(extent: FileShape) -> Iterator[DatasetSpec]:
    """Yield the matrices of the whole network, where they were asked for.

    Args:
        extent: The facts that decide names and shapes.

    Yields:
        The datasets in file order; none where it was not.
    """
    if not (extent.network_length or extent.curvature):
        return
    matrix, num, length = Matrix.FISHER, extent.num_snapshots, extent.network_length
    yield DatasetSpec(f"{NETWORK}/step", (num,), Kind.INT, ("step",), "training step")
    if extent.curvature:
        yield from _curvature(NETWORK, (num,), ("step",), extent)
    if not length:
        return
    # There without eigenvalues too: it says how many there are.
    yield DatasetSpec(f"{NETWORK}/eig", (length,), Kind.INT, ("eig",), EIG_NAME)
    name = "fraction p of kappa"
    yield DatasetSpec(f"{NETWORK}/p", (extent.num_p,), Kind.FLOAT, ("p",), name)
    yield from _matrix(NETWORK, matrix, (num,), ("step",), extent)
    for name, meaning in NETWORK_CLOSENESS_NAMES.items() if has_closeness(extent.lengths) else ():
        path = f"{NETWORK}/{name}"
        yield DatasetSpec(path, (num,), Kind.FLOAT, ("step",), meaning, axis=Axis.SNAPSHOT)
    if extent.save_spectra:
        path, shape, dims = f"{NETWORK}/{matrix}_eigenvalue", (num, length), ("step", "eig")
        name = _eigenvalue_name(matrix)
        yield DatasetSpec(path, shape, Kind.FLOAT, dims, name, "1", Axis.SNAPSHOT, matrix)


def spectra(extent: FileShape) -> Iterator[DatasetSpec]:
    """Yield the eigenvalues: a group a length, as a group a layer would open too slowly.

    Args:
        extent: The facts that decide names and shapes.

    Yields:
        The datasets in file order.
    """
    stored = [matrix for matrix in extent.lengths if matrix not in WITHOUT_SPECTRA]
    for matrix in stored if extent.save_spectra else ():
        lengths = extent.lengths[matrix]
        for length in sorted(set(lengths) - {0}):
            group = spectra_group(matrix, length)
            members = tuple(i for i, other in enumerate(lengths) if other == length)
            shape, dims = (extent.num_snapshots, len(members), length), ("step", "layer", "eig")
            yield DatasetSpec(f"{group}/step", shape[:1], Kind.INT, dims[:1], "training step")
            yield DatasetSpec(f"{group}/layer", shape[1:2], Kind.TEXT, dims[1:2], "layer")
            name = "index of the layer among all layers"
            yield DatasetSpec(f"{group}/layer_index", shape[1:2], Kind.INT, dims[1:2], name)
            yield DatasetSpec(f"{group}/eig", shape[2:], Kind.INT, dims[2:], EIG_NAME)
            path, name = f"{group}/eigenvalue", _eigenvalue_name(matrix)
            yield DatasetSpec(
                path, shape, Kind.FLOAT, dims, name, "1", Axis.SNAPSHOT, matrix, members
            )


def _eigenvalue_name(matrix: Matrix) -> str:
    return f"eigenvalues, descending: {MATRIX_NAMES[matrix]}"
