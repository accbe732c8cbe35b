"""Records of the layers that are measured, and of the modules that are not."""

from dataclasses import dataclass

from condexp.analysis.vocabulary import Matrix


@dataclass(frozen=True)
class LayerInfo:
    """The sizes of one analysed layer.

    Args:
        name: The module's dotted name (the class name where the model itself is the layer).
        type: ``Linear`` or ``Conv2d``.
        d_in: Side of a block of ``input``: (C_in / groups)·k_h·k_w, C_in / groups under
            ``channels``, one more with ``bias``.
        d_out: Output features or channels, of all groups together.
        groups: Number of separate blocks.
        positions: T, the rows a sample contributes in one use (in the first, should they differ).
        uses: How often the module is called in one pass; more than 1: its rows are united.
        fan_in: Columns of the weight matrix where they differ from ``d_in``.
        num_weights: Side of a Fisher block where it is not d_in·d_out: under ``channels``.
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

    def spectrum_length(self, matrix: Matrix) -> int:
        """Return the number of eigenvalues of a matrix of this layer, over all groups.

        A ``fisher`` spectrum has fewer where it has fewer rows.
        """
        match matrix:
            case Matrix.INPUT:
                return self.groups * self.d_in
            case Matrix.GRAD_OUTPUT:
                return self.d_out
            case Matrix.KFAC:
                return self.d_in * self.d_out
            case Matrix.FISHER:
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
    """What an analysis would measure: layers in execution order, and what it would not."""

    layers: tuple[LayerInfo, ...]
    not_analysed: tuple[NotAnalysed, ...]
