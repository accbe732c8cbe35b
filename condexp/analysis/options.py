"""What to measure: the choices of an analysis, validated once and then trusted."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Self, TypeVar

from condexp.analysis.vocabulary import (
    DEFAULT_MATRICES,
    GRADIENT_MATRICES,
    KAPPA_P,
    ConvInput,
    FisherType,
    Matrix,
    Precision,
)
from condexp.errors import InputError, choose

"""Those made of what ``fisher_type`` back-propagates; ``weight_grad`` is of the data's loss."""
"""With the spectrum of one the other's comes cheap enough that ``domination`` is stored."""


@dataclass(frozen=True)
class AnalysisOptions:
    """The choices of one analysis; plain strings are accepted and converted.

    Args:
        matrices: The matrices to measure, in any order (named twice is named once).
        fisher_type: Whose labels are back-propagated for ``grad_output``, ``kfac`` and ``fisher``.
        layers: Names, globs or the aliases ``first``, ``last_linear``, ``all`` to include.
        exclude: The same language, taken away afterwards.
        conv_input: The rows of a convolution's ``input``.
        center: Subtract the mean from ``input`` and ``grad_output``.
        bias: Append 1 to the input of layers that have a bias.
        precision: The dtype of the products; ``auto`` starts in float32 (float64 where the rows
            are float64, and for ``fisher``) and takes a layer again in float64 where a requested
            κ_p needs it.
        kappa_p: The fractions p of κ_p that ``auto`` answers for.
        seed: Seed of everything that is drawn (by ``mc`` alone).
        mc_samples: Labels that ``mc`` draws for each sample.
        memory_limit: Bytes that ``fisher`` may keep and work in; None: no limit.
        float64: Names of layers whose products ``auto`` takes in float64 at once: those used more
            than once in a pass, whose first rows are gone when the last ones come.

    Raises:
        InputError: If a name is unknown, a fraction is outside (0, 1] or a count is below 1.
    """

    matrices: tuple[Matrix, ...] = DEFAULT_MATRICES
    fisher_type: FisherType = FisherType.EMPIRICAL
    layers: tuple[str, ...] = ("all",)
    exclude: tuple[str, ...] = ()
    conv_input: ConvInput = ConvInput.PATCHES
    center: bool = False
    bias: bool = False
    precision: Precision = Precision.AUTO
    kappa_p: tuple[float, ...] = KAPPA_P
    seed: int = 0
    mc_samples: int = 1
    memory_limit: int | None = None
    float64: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        matrices = (_chosen(Matrix, "matrix", m) for m in names(self.matrices))
        put("matrices", tuple(dict.fromkeys(matrices)))
        put("fisher_type", _chosen(FisherType, "fisher_type", self.fisher_type))
        put("conv_input", _chosen(ConvInput, "conv_input", self.conv_input))
        put("precision", _chosen(Precision, "precision", self.precision))
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
        if self.memory_limit is not None and self.memory_limit < 1:
            raise InputError(
                f"memory_limit must be a positive number of bytes, got {self.memory_limit}; "
                "None sets no limit."
            )

    @classmethod
    def given(cls, *, layers: Iterable[str] | None, **choices: Any) -> Self:
        """Validate choices as a user gives them.

        Args:
            layers: None for all.
            **choices: The other fields, plain strings and any iterables.

        Returns:
            The record.
        """
        return cls(layers=("all",) if layers is None else tuple(names(layers)), **choices)

    def wants(self, *matrices: Matrix) -> bool:
        """Return whether any of these matrices was asked for."""
        return not self._wanted.isdisjoint(matrices)

    @cached_property
    def _wanted(self) -> frozenset[Matrix]:
        return frozenset(self.matrices)

    @property
    def has_several_signals(self) -> bool:
        """Whether more than one signal may be back-propagated after a forward pass."""
        drawn_once = self.fisher_type is FisherType.MC and self.mc_samples == 1
        return not (self.fisher_type is FisherType.EMPIRICAL or drawn_once)

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
