"""The options of an analysis: documented, defaulted and validated in one record."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypedDict, TypeVar

from condexp.analysis.vocabulary import (
    CURVATURE_MATRICES,
    DEFAULT_MATRICES,
    GRADIENT_MATRICES,
    KAPPA_P,
    ConvInput,
    FisherType,
    Matrix,
    NetworkPrecision,
    Precision,
    WeightSharing,
)
from condexp.errors import InputError, choose


class AnalysisChoices(TypedDict, total=False):
    """Options as a user types them: fields of :class:`AnalysisOptions`, where each is documented.

    A string stands for a member of its enumeration, any iterable for a tuple, and None for all
    layers.
    """

    matrices: Iterable[str]
    fisher_type: str
    layers: Iterable[str] | None
    exclude: Iterable[str]
    conv_input: str
    weight_sharing: str
    center: bool
    bias: bool
    precision: str
    network_precision: str
    kappa_p: Iterable[float]
    seed: int
    mc_samples: int
    memory_limit: int | None
    top_k: int
    eigenvalue_tolerance: float
    num_random_vectors: int
    num_lanczos_steps: int
    layer_blocks: bool


@dataclass(frozen=True)
class AnalysisOptions:
    """The options of one analysis, which need no further checks; plain strings are converted.

    Args:
        matrices: Matrices to measure: ``input``, ``grad_output``, ``kfac``, ``ekfac``, ``fisher``,
            ``weight``, ``weight_grad``, ``hessian``, ``ggn``, in any order.
        fisher_type: Labels that are back-propagated for ``grad_output``, ``kfac``, ``ekfac`` and
            ``fisher``.
            ``empirical``: the data's; ``mc``: drawn from the model's softmax (for ``nn.MSELoss``
            from the normal distribution around its output); ``exact``: all, which gives the
            Gauss–Newton matrix. The weights' own gradients are of the data's loss always.
        layers: Layers to measure, as names, globs or the aliases ``first``, ``last_linear``,
            ``all``; None for all.
        exclude: Layers to leave out of these, in the same language.
        conv_input: Rows of a convolution's ``input``: ``patches`` or ``channels`` (its pixels).
        weight_sharing: How the positions of a sample, such as pixels and tokens, enter the factors.
            ``expand``: each is a row. ``reduce``: they make one row, the mean of the inputs and the
            sum of the gradients (KFAC-reduce).
        center: Subtract the means from ``input`` and ``grad_output``.
        bias: Append 1 to the inputs of layers that have a bias.
        precision: Precision of the matrix products, ``auto``, ``float32`` or ``float64``. ``auto``
            starts in float32 (float64 where the rows are float64, and for ``fisher``) and measures
            a layer again in float64 where one of ``kappa_p`` needs it.
        network_precision: Precision of the network in the measured pass. ``as_trained``: its own.
            ``float64``: a copy's (weights, buffers and batch converted; the same modes, the same
            random draws, no autocast), for the numbers of the function without its rounding.
        kappa_p: Fractions p of the κ_p that ``auto`` has to resolve.
        seed: Seed of the labels that ``mc`` draws.
        mc_samples: Number of labels that ``mc`` draws for each sample.
        memory_limit: Bytes that ``fisher`` and ``ekfac`` may keep and work in; None for no limit.
            Layers are measured in groups that fit. ``hessian`` and ``ggn`` are refused where the
            vectors that they keep take more.
        top_k: Number of eigenvalues of ``hessian`` and ``ggn``, the largest ones.
        eigenvalue_tolerance: Residual ‖Ax − θx‖ at which one of these is done, relative to the
            largest modulus.
        num_random_vectors: Number of random vectors for the trace, the norm, the negative share and
            the density of ``hessian`` and ``ggn``.
        num_lanczos_steps: Number of products of each of these vectors. A matrix of no more weights
            than vectors times steps is computed whole.
        layer_blocks: Whether ``hessian`` and ``ggn`` are measured of each layer's block too, beside
            the whole network's.
        float64: Names of layers whose products ``auto`` takes in float64 at once: those called more
            than once in a pass, whose first rows are gone when the last ones come.

    Raises:
        InputError: If a name is unknown, a fraction is outside (0, 1] or a count is below 1.
    """

    matrices: tuple[Matrix, ...] = DEFAULT_MATRICES
    fisher_type: FisherType = FisherType.EMPIRICAL
    layers: tuple[str, ...] = ("all",)
    exclude: tuple[str, ...] = ()
    conv_input: ConvInput = ConvInput.PATCHES
    weight_sharing: WeightSharing = WeightSharing.EXPAND
    center: bool = False
    bias: bool = False
    precision: Precision = Precision.AUTO
    network_precision: NetworkPrecision = NetworkPrecision.AS_TRAINED
    kappa_p: tuple[float, ...] = KAPPA_P
    seed: int = 0
    mc_samples: int = 1
    memory_limit: int | None = None
    top_k: int = 5
    eigenvalue_tolerance: float = 1e-3
    num_random_vectors: int = 8
    num_lanczos_steps: int = 16
    layer_blocks: bool = True
    float64: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        matrices = (_chosen(Matrix, "matrix", m) for m in names(self.matrices))
        put("matrices", tuple(dict.fromkeys(matrices)))
        put("fisher_type", _chosen(FisherType, "fisher_type", self.fisher_type))
        put("conv_input", _chosen(ConvInput, "conv_input", self.conv_input))
        put("weight_sharing", _chosen(WeightSharing, "weight_sharing", self.weight_sharing))
        if self.reduces and self.conv_input is ConvInput.CHANNELS:
            raise InputError(
                "weight_sharing='reduce' takes a mean over patches: it needs conv_input='patches'."
            )
        if Matrix.EKFAC in self.matrices:
            self._refuse_other_factors()
        put("precision", _chosen(Precision, "precision", self.precision))
        chosen = _chosen(NetworkPrecision, "network_precision", self.network_precision)
        put("network_precision", chosen)
        put("layers", names(self.layers))
        put("exclude", names(self.exclude))
        put("float64", names(self.float64))
        put("kappa_p", tuple(dict.fromkeys(float(p) for p in self.kappa_p)))
        for p in self.kappa_p:
            if not 0 < p <= 1:
                raise InputError(
                    f"kappa_p must be fractions in (0, 1], got {p}: "
                    "κ_p is λ_1 over the ⌈p·d⌉-th eigenvalue, κ_1 the classical condition number."
                )
        if self.mc_samples < 1:
            raise InputError(f"mc_samples must be at least 1, got {self.mc_samples}.")
        for field, least in (("top_k", 1), ("num_random_vectors", 2), ("num_lanczos_steps", 2)):
            if getattr(self, field) < least:
                raise InputError(f"{field} must be at least {least}, got {getattr(self, field)}.")
        if not 0 < self.eigenvalue_tolerance < 1:
            raise InputError(
                "eigenvalue_tolerance must be a fraction in (0, 1) of the largest eigenvalue, got "
                f"{self.eigenvalue_tolerance}."
            )
        if self.memory_limit is not None and self.memory_limit < 1:
            raise InputError(
                f"memory_limit must be a positive number of bytes, got {self.memory_limit}; "
                "None sets no limit."
            )

    def _refuse_other_factors(self) -> None:
        """Refuse ``ekfac`` where the factors are of other rows than the weight's gradient.

        Raises:
            InputError: If they are.
        """
        if self.center:
            raise InputError(
                "matrix 'ekfac' and center=True exclude each other: it is the diagonal of the "
                "Fisher block, whose gradients are not centred, in the eigenbasis of its own "
                "factors; measure with center=False."
            )
        if self.conv_input is ConvInput.CHANNELS:
            raise InputError(
                "matrix 'ekfac' needs conv_input='patches': the eigenvectors of pixels (channels) "
                "are no basis of the weight."
            )
        if self.reduces:
            raise InputError(
                "matrix 'ekfac' needs weight_sharing='expand': the means over positions do not "
                "span the samples' gradients, so that they leave its basis open."
            )

    @classmethod
    def of(
        cls,
        options: "AnalysisOptions | Iterable[str] | None",
        choices: AnalysisChoices,
        also_allowed: Iterable[str] = (),
    ) -> "AnalysisOptions":
        """Return the options that a user has given.

        Args:
            options: A record to start from, or the matrices alone; None for the defaults.
            choices: Options that differ from these, by name.
            also_allowed: Other keywords of the function that takes the choices, so that a
                misspelling of them is recognised too.

        Returns:
            The record.

        Raises:
            InputError: If a name is not an option's, or the matrices are given twice.
        """
        for name in choices:
            choose("option", name, [*AnalysisChoices.__annotations__, *also_allowed])
        changes: dict[str, Any] = dict(choices)
        if "layers" in changes and changes["layers"] is None:
            changes["layers"] = ("all",)
        if isinstance(options, AnalysisOptions):
            return replace(options, **changes)
        if options is not None:
            if "matrices" in changes:
                raise InputError("matrices are given twice: by position and as matrices=...")
            changes["matrices"] = options
        return cls(**changes)

    def wants(self, *matrices: Matrix) -> bool:
        """Return whether any of these matrices was asked for."""
        return not self._wanted.isdisjoint(matrices)

    @cached_property
    def _wanted(self) -> frozenset[Matrix]:
        return frozenset(self.matrices)

    @property
    def has_several_signals(self) -> bool:
        """Whether more than one cotangent may be back-propagated after a forward pass."""
        drawn_once = self.fisher_type is FisherType.MC and self.mc_samples == 1
        return not (self.is_empirical or drawn_once)

    @property
    def wants_curvature(self) -> bool:
        """Whether matrices were asked for that take products of their own: hessian and ggn."""
        return self.wants(*CURVATURE_MATRICES)

    @property
    def in_float64(self) -> bool:
        """Whether a pass of its own runs through a float64 copy of the network."""
        return self.network_precision is NetworkPrecision.FLOAT64

    @property
    def reduces(self) -> bool:
        """Whether the positions of a sample make one row of the factors."""
        return self.weight_sharing is WeightSharing.REDUCE

    @property
    def is_empirical(self) -> bool:
        """Whether the data's labels are back-propagated, so that the loss's own pass is enough."""
        return self.fisher_type is FisherType.EMPIRICAL

    @property
    def needs_gradients(self) -> bool:
        """Whether a matrix was asked for that exists only where a gradient reaches the layer."""
        return self.wants(*GRADIENT_MATRICES)


def names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; a single string is one name, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


Choice = TypeVar("Choice", bound=StrEnum)


def _chosen(kind: type[Choice], what: str, given: str) -> Choice:
    return kind(choose(what, str(given), [str(allowed) for allowed in kind]))


Documented = TypeVar("Documented", bound=Callable[..., object])


def documents_options(function: Documented) -> Documented:
    """Append all options, with defaults and meanings, to a docstring, where ``help`` shows them.

    Args:
        function: A function or class that takes ``**choices``.

    Returns:
        The same function.
    """
    if function.__doc__ is not None and AnalysisOptions.__doc__ is not None:  # both None under -OO
        arguments = inspect.cleandoc(AnalysisOptions.__doc__).split("Args:\n")[1]
        meanings = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
        defaults = {field.name: _plain(field.default) for field in fields(AnalysisOptions)}
        entries = [
            f"    {name}={defaults[name]!r}\n        {meaning}"
            for name, meaning in meanings
            if name in AnalysisChoices.__annotations__
        ]
        text = inspect.cleandoc(function.__doc__)
        function.__doc__ = "\n".join([text, "", "Options:", *entries, ""])
    return function


def _plain(value: object) -> object:
    """Return a default as a user would type it."""
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    return str(value) if isinstance(value, StrEnum) else value
