"""The vocabulary of ``results.h5``: element types, codes, units and long names of what it holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from condexp.analysis.vocabulary import Matrix

FORMAT = "condexp"
VERSION = 3
"""The version that is written: 2 has intervals of κ, certificates and coverage, 3 checksums of all
that is read."""
WITH_CURVATURE = 4
"""The version of a file that has a Hessian, its sharpness, a Gauss–Newton matrix or EKFAC, and is
otherwise as 3."""
WRITTEN = (VERSION, WITH_CURVATURE)
READABLE = (1, 2, *WRITTEN)

STATUS_CODES_1 = {"absent": 0, "ok": 1, "zero": 2, "unreliable": 3, "nonfinite": 4}
STATUS_CODES = STATUS_CODES_1 | {"incomplete": 5}
ESTIMATED = "estimated"
"""Stored as ``ok`` with a rank of NaN, which no other has: a spectrum too wide to be solved for."""
DTYPE_CODES = {
    "absent": 0,
    "float16": 1,
    "bfloat16": 2,
    "tfloat32": 3,
    "float32": 4,
    "float64": 5,
}

SCALE_CONVENTION = (
    "input: 1/(N*T) sum over samples and positions of a a^T; "
    "grad_output: 1/N sum of g g^T, summed over positions, "
    "g = D * dL/dh with D the denominator of the loss; "
    "kfac: their Kronecker product; fisher: 1/N sum over samples of vec(G) vec(G)^T; "
    "weight, weight_grad: squared singular values"
)
REDUCED_CONVENTION = SCALE_CONVENTION.replace(
    "input: 1/(N*T) sum over samples and positions of a a^T; "
    "grad_output: 1/N sum of g g^T, summed over positions, ",
    "input: 1/N sum of a a^T, a the mean over positions; "
    "grad_output: 1/N sum of g g^T, g summed over positions before, ",
)

# Only measures are kept of them: the spectrum of a product may have 10^7 eigenvalues.
WITHOUT_SPECTRA = frozenset({Matrix.KFAC, Matrix.EKFAC})

MATRIX_NAMES = {
    Matrix.INPUT: "second moment of the layer's input",
    Matrix.GRAD_OUTPUT: "second moment of the gradient at the layer's output",
    Matrix.KFAC: "Kronecker product of input and grad_output",
    Matrix.EKFAC: "diagonal of fisher in the eigenbasis of kfac",
    Matrix.FISHER: "Fisher block, the second moment of the samples' weight gradients",
    Matrix.WEIGHT: "W W^T",
    Matrix.WEIGHT_GRAD: "(dL/dW)(dL/dW)^T",
    Matrix.HESSIAN: "Hessian of the loss",
    Matrix.GGN: "Gauss-Newton matrix of the loss",
}
MEASURE_NAMES = {
    "lambda_max": "largest eigenvalue",
    "lambda_min": "smallest eigenvalue",
    "trace": "sum of the eigenvalues",
    "rank": "number of eigenvalues above the noise floor",
    "kappa_rank": "largest over smallest eigenvalue above the noise floor",
    "effective_rank": "exponential of the spectrum's entropy",
    "stable_rank": "sum over maximum of the eigenvalues",
    "kappa": "largest over k(p)-th eigenvalue",
    "kappa_low": "low end of the interval of kappa",
    "kappa_high": "high end of the interval of kappa, inf where it is known from below only",
    "noise_floor": "eigenvalues below this count as zero",
    "status": "whether the spectrum can be used",
    "dtype": "precision of the products",
    "weight_norm": "Frobenius norm of the weight",
    "grad_norm": "Frobenius norm of the weight's gradient",
    "domination": "largest singular value of the weight's gradient over that of the weight",
    "effective_lr": "median over output rows of learning rate over squared row norm",
    "input_mean_fraction": "share of the mean in the input's second moment",
    "dead_fraction": "share of input units that are 0 on every analysed sample and position",
    "full_fraction": "share of input units that are > 0 on every analysed sample and position",
}
CURVATURE_NAMES = {
    "lambda_max": "largest eigenvalue",
    "lambda_max_error": "an eigenvalue lies within this of lambda_max",
    "lambda_min": "lowest eigenvalue",
    "lambda_min_error": "an eigenvalue lies within this of lambda_min",
    "trace": "sum of the eigenvalues",
    "trace_error": "half-width of the 99 % interval of the trace",
    "frobenius_norm": "root of the sum of the squared eigenvalues",
    "frobenius_norm_error": "half-width of its 99 % interval",
    "negative_share": "sum over the negative eigenvalues of |lambda|, over that of all",
    "negative_share_error": "half-width of its 99 % interval, statistical",
    "density_scale": "largest modulus of an eigenvalue: the unit of the density's points",
    "num_products": "products with a vector that it took",
}
CERTIFICATE_NAMES = {
    "gradient_residual": "distance of the recorded rows from the weight's gradient, relative",
}
CLOSENESS_NAMES = {
    "kfac_cosine": "cosine of kfac and fisher as vectors",
    "kfac_relative_error": "Frobenius norm of kfac less fisher over that of fisher",
    "ekfac_cosine": "cosine of ekfac and fisher as vectors",
    "ekfac_relative_error": "Frobenius norm of ekfac less fisher over that of fisher",
}
NETWORK_CLOSENESS_NAMES = {
    "block_diagonal_cosine": "cosine of the layers' blocks and the network's matrix as vectors",
    "block_diagonal_relative_error": "Frobenius norm of what is beside the blocks over the whole",
}
COVERAGE_NAMES = {
    "coverage_parameters": "measured share of the network's parameters",
    "coverage_gradient": "measured share of the squared norm of the network's gradient",
}
TRAIN_NAMES = {"loss": "loss of the step's batch", "lr": "learning rate of the step's update"}
SHARPNESS_NAMES = {
    "sharpness": "largest eigenvalue of the Hessian of the loss, NaN at steps between",
    "sharpness_error": "an eigenvalue lies within this of sharpness",
}
EVAL_NAMES = {
    "epoch": "epochs of training",
    "train_loss": "loss over the training set",
    "train_error": "misclassified share of the training set",
    "test_loss": "loss over the test set",
    "test_error": "misclassified share of the test set",
}


class Axis(StrEnum):
    """Which kind of record fills a row of a dataset."""

    SNAPSHOT = "snapshot"
    TRAIN = "train"
    EVAL = "eval"


PLAIN_NAMES = {Axis.TRAIN: (*TRAIN_NAMES, *SHARPNESS_NAMES), Axis.EVAL: tuple(EVAL_NAMES)}
"""The columns of plain numbers, in file order; a file has those of sharpness where asked for."""


class Kind(StrEnum):
    """How the elements of a dataset are stored; all little-endian."""

    FLOAT = "<f8"
    INT = "<i8"
    COUNT = "<i4"
    CHECKSUM = "<u4"
    FLAG = "|i1"
    TEXT = "text"
    STATUS = "status"
    STATUS_1 = "status of version 1"
    DTYPE = "dtype"

    @property
    def num_bytes(self) -> int:
        """Size of one element in the array itself; the letters of a text lie elsewhere."""
        sizes = {Kind.FLOAT: 8, Kind.INT: 8, Kind.COUNT: 4, Kind.CHECKSUM: 4, Kind.TEXT: 16}
        return sizes.get(self, 1)

    @property
    def codes(self) -> dict[str, int] | None:
        """The names of an enumeration's values."""
        codes = {
            Kind.STATUS: STATUS_CODES,
            Kind.STATUS_1: STATUS_CODES_1,
            Kind.DTYPE: DTYPE_CODES,
        }
        return codes.get(self)


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of the file.

    Attributes:
        path: Path in the file, without a leading slash.
        shape: Final shape; ``()`` for a scalar.
        kind: Element type.
        dims: Name of each dimension, which is that of its scale in the same group.
        long_name: What the values are.
        units: Unit of the values; ``"1"`` for plain numbers.
        axis: The record that fills its rows; None where the content is fixed at creation.
        matrix: The matrix it is a measure of, if it is of one.
        members: Of an array of eigenvalues, the indices of its layers among all layers.
    """

    path: str
    shape: tuple[int, ...]
    kind: Kind
    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    axis: Axis | None = None
    matrix: Matrix | None = None
    members: tuple[int, ...] = ()

    @property
    def group(self) -> str:
        """Path of the group, empty for the root."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Name within the group."""
        return self.path.rpartition("/")[2]

    @property
    def measure(self) -> str:
        """What is read from the record: the name without the matrix."""
        return self.name.removeprefix(f"{self.matrix}_") if self.matrix else self.name

    @property
    def is_scale(self) -> bool:
        """Whether this is the scale of its own dimension."""
        return self.dims == (self.name,)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.kind.num_bytes * math.prod(self.shape[1:])

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.kind.num_bytes * math.prod(self.shape)


@dataclass(frozen=True)
class FileShape:
    """What decides the name and shape of every dataset; read back from a file as it was.

    Attributes:
        layers: Names of the analysed layers in execution order.
        lengths: For each measured matrix, the length of each layer's spectrum.
        network_length: Length of the spectrum of the whole network's Fisher; 0 is absent.
        num_p: Fractions p of the condition numbers.
        save_spectra: Whether eigenvalues are kept, not only their measures.
        num_snapshots: Scheduled snapshots.
        num_train_steps: Scheduled optimizer steps.
        num_evals: Scheduled evaluations.
        num_not_analysed: Modules with weights that are not measured.
        version: Of the format: an older file has fewer datasets.
        curvature: Those of ``hessian`` and ``ggn`` that are measured.
        top_k: Number of their eigenvalues.
        layer_blocks: Whether they are measured of each layer's block too.
        sharpness: Whether training steps have it.
    """

    layers: tuple[str, ...]
    lengths: Mapping[Matrix, tuple[int, ...]]
    network_length: int
    num_p: int
    save_spectra: bool
    num_snapshots: int
    num_train_steps: int
    num_evals: int
    num_not_analysed: int
    version: int = VERSION
    curvature: tuple[Matrix, ...] = ()
    top_k: int = 0
    layer_blocks: bool = False
    sharpness: bool = False
