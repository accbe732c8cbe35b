"""Records of the layers that are measured, and of the modules that are not."""

from dataclasses import dataclass

from condexp.analysis.vocabulary import OF_FACTORS, Matrix


@dataclass(frozen=True)
class LayerInfo:
    """The sizes of one analysed layer.

    Args:
        name: The module's dotted name (the class name where the model itself is the layer).
        type: Class of the module: ``Linear``, ``Conv2d``, ``MultiheadAttention``, …
        d_in: Side of a block of ``input``: (C_in / groups)·k_h·k_w, C_in / groups under
            ``channels``, one more with ``bias``.
        d_out: Output features or channels, of all groups together.
        groups: Number of separate blocks.
        positions: Number T of rows that a sample contributes in one call (the first, should they
            differ).
        uses: Number of calls of the module in one pass, whose rows are measured together.
        fan_in: Columns of the weight matrix where they differ from ``d_in``.
        num_weights: Side of a Fisher block where it is not d_in·d_out: under ``channels``.
        has_factors: Whether there are ``input``, ``grad_output`` and ``kfac``: not of the scale of
            a normalisation (d_in = 1), nor of a weight that is used in several ways.
        is_reduced: Whether the positions of a sample make one row.
    """

    name: str
    type: str
    d_in: int
    d_out: int
    groups: int
    positions: int
    uses: int
    fan_in: int | None = None
    num_weights: int | None = None
    has_factors: bool = True
    is_reduced: bool = False

    @property
    def rows_per_sample(self) -> int:
        """Number of rows of a sample, of all uses."""
        return 1 if self.is_reduced else self.positions * self.uses

    def spectrum_length(self, matrix: Matrix) -> int:
        """Return the number of eigenvalues of a matrix of this layer, over all groups.

        A ``fisher`` spectrum has fewer where it has fewer rows; of ``hessian`` and ``ggn`` the
        largest ones alone are known. 0: there is no such matrix.
        """
        if matrix in OF_FACTORS and not self.has_factors:
            return 0
        match matrix:
            case Matrix.INPUT:
                return self.groups * self.d_in
            case Matrix.GRAD_OUTPUT:
                return self.d_out
            case Matrix.KFAC | Matrix.EKFAC:
                return self.d_in * self.d_out
            case Matrix.FISHER | Matrix.HESSIAN | Matrix.GGN:
                return self.num_weights or self.d_in * self.d_out
            case Matrix.WEIGHT | Matrix.WEIGHT_GRAD:
                return self.groups * min(self.d_out // self.groups, self.fan_in or self.d_in)


@dataclass(frozen=True)
class NotAnalysed:
    """A module with weights that is not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """The layers that an analysis would measure, in execution order, and the other modules."""

    layers: tuple[LayerInfo, ...]
    not_analysed: tuple[NotAnalysed, ...]
