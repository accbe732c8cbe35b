"""Names of all that can be measured, without torch: configuration and files need them."""

from collections.abc import Collection
from enum import StrEnum

FRACTIONS = ("input_mean_fraction", "dead_fraction", "full_fraction")
"""Those of ``LAYER_MEASURES`` that lie between 0 and 1."""

LAYER_MEASURES = ("weight_norm", "grad_norm", "domination", "effective_lr", *FRACTIONS)
"""The measures of a layer that are no spectrum's, by attribute name."""

CLOSENESS = ("kfac_cosine", "kfac_relative_error", "ekfac_cosine", "ekfac_relative_error")
"""How close the Kronecker approximations of a layer's Fisher block are to it, by attribute name."""

NETWORK_CLOSENESS = ("block_diagonal_cosine", "block_diagonal_relative_error")
"""How close the layers' Fisher blocks are to the network's matrix, likewise."""

CERTIFICATES = ("gradient_residual",)
"""What a layer's measures are certified by, by attribute name."""

SPECTRUM_MEASURES = (
    "lambda_max",
    "lambda_min",
    "trace",
    "rank",
    "kappa_rank",
    "effective_rank",
    "stable_rank",
)
"""The scalar measures of a spectrum, by attribute name; ``kappa(p)`` comes on top."""

KAPPA_P = (0.5, 0.8, 0.9, 1.0)
"""The default fractions p of κ_p."""

CURVATURE_MEASURES = (
    "lambda_max",
    "lambda_max_error",
    "lambda_min",
    "lambda_min_error",
    "trace",
    "trace_error",
    "frobenius_norm",
    "frobenius_norm_error",
    "negative_share",
    "negative_share_error",
    "density_scale",
    "num_products",
)
"""The scalar measures of a Hessian or Gauss–Newton matrix, by attribute name."""

_DECADES, _PER_SIDE = 5, 200
_UPPER = tuple(10 ** (_DECADES * (i / (_PER_SIDE - 1) - 1)) for i in range(_PER_SIDE))
DENSITY_POINTS = (*(-x for x in reversed(_UPPER)), 0.0, *_UPPER)
"""Points of a spectral density, relative to its scale: dense around 0, where most eigenvalues of a
network lie, and 6 % apart, so that a second moment over them is right to a thousandth."""


class Matrix(StrEnum):
    """The matrices whose spectra are measured (``docs/theory.md`` §3)."""

    INPUT = "input"
    GRAD_OUTPUT = "grad_output"
    KFAC = "kfac"
    EKFAC = "ekfac"
    FISHER = "fisher"
    WEIGHT = "weight"
    WEIGHT_GRAD = "weight_grad"
    HESSIAN = "hessian"
    GGN = "ggn"


DEFAULT_MATRICES = (Matrix.INPUT, Matrix.GRAD_OUTPUT, Matrix.KFAC)
SIGNAL_MATRICES = frozenset({Matrix.GRAD_OUTPUT, Matrix.KFAC, Matrix.EKFAC, Matrix.FISHER})
"""The matrices that ``fisher_type`` decides: ``weight_grad`` is of the data's loss always."""
OF_FACTORS = (Matrix.INPUT, Matrix.GRAD_OUTPUT, Matrix.KFAC, Matrix.EKFAC)
"""The matrices that a weight without factors does not have: see :class:`.LayerInfo`."""
SAMPLE_MATRICES = (Matrix.EKFAC, Matrix.FISHER)
"""The matrices that are made of every sample's own gradient: rows have to belong to samples."""
CURVATURE_MATRICES = (Matrix.HESSIAN, Matrix.GGN)
"""The matrices that are known by their products: the upper eigenvalues, and moments with errors."""
WHOLE_MATRICES = tuple(matrix for matrix in Matrix if matrix not in CURVATURE_MATRICES)
"""The matrices whose spectra are known whole."""
GRADIENT_MATRICES = SIGNAL_MATRICES | {*CURVATURE_MATRICES, Matrix.WEIGHT_GRAD}
SINGULAR_VALUES = frozenset({Matrix.WEIGHT, Matrix.WEIGHT_GRAD})
"""With the spectrum of one the other's is cheap, so ``domination`` is stored where one is asked."""


def has_closeness(matrices: Collection[str]) -> bool:
    """Return whether approximations of the Fisher blocks are compared with them.

    Args:
        matrices: The matrices that are measured.
    """
    return set(SAMPLE_MATRICES) <= set(matrices)


class ConvInput(StrEnum):
    """The rows of a convolution's ``input``: flattened patches or pixels (channels)."""

    PATCHES = "patches"
    CHANNELS = "channels"


class WeightSharing(StrEnum):
    """How positions at which a weight is applied enter the factors (Eschenhagen et al. 2023)."""

    EXPAND = "expand"
    """Each is a row of its own."""
    REDUCE = "reduce"
    """Those of a sample make one row: the mean of a, and the sum of g."""


class FisherType(StrEnum):
    """The labels whose loss is back-propagated (Kunstner et al. 2019)."""

    EMPIRICAL = "empirical"
    """The data's own."""
    MC = "mc"
    """Drawn from the model's distribution, seeded."""
    EXACT = "exact"
    """All labels, weighted by the model's distribution: the Gauss–Newton matrix in eval mode."""


class SpectrumStatus(StrEnum):
    """Whether a spectrum's numbers can be believed."""

    OK = "ok"
    ESTIMATED = "estimated"
    """The matrix is too wide to be solved: λ_1, the trace and what follows from them are as for
    ``ok``, κ_p has an interval that is wider, ranks and most eigenvalues are NaN."""
    ZERO = "zero"
    """The matrix is 0 (a dead layer), or rounding: rank 0, ratios NaN."""
    UNRELIABLE = "unreliable"
    """An eigenvalue lies below −noise floor, so rounding exceeds what was promised: all NaN."""
    NONFINITE = "nonfinite"
    """The matrix contains NaN or Inf: all NaN."""
    INCOMPLETE = "incomplete"
    """The recorded rows do not reproduce the weight's gradient, so none of the layer's numbers can
    be believed: all NaN."""

    @property
    def has_ratios(self) -> bool:
        """Whether λ_1 and κ_p are numbers."""
        return self in {SpectrumStatus.OK, SpectrumStatus.ESTIMATED}


class Precision(StrEnum):
    """Working precision of second moments (sums and eigenvalues are float64 always)."""

    AUTO = "auto"
    """float32, and float64 where a requested κ_p needs it (see ``needs_float64``)."""
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class NetworkPrecision(StrEnum):
    """Precision of the network in the pass that is measured."""

    AS_TRAINED = "as_trained"
    """The network's own."""
    FLOAT64 = "float64"
    """Weights, buffers and batch converted: the function itself, without its rounding."""
