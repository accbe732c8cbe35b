"""The cost of measuring a layer: the side of each matrix that is used, and memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.fisher.formed import fisher_block
from condexp.analysis.fisher.network import NetworkFisher
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.layers.info import Catalogue, LayerInfo
from condexp.analysis.layers.rows import moment_rows
from condexp.analysis.layers.select import select_layers
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.layers.uses import watched
from condexp.analysis.linalg.ratios import is_wide
from condexp.analysis.linalg.rows.stride1_patches import PatchRows
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix

DOUBLE, SINGLE = 8, 4  # bytes of a number


@dataclass(frozen=True)
class Sides:
    """Sizes of one matrix 1/R·Σ r rᵀ, of which the smaller side is used.

    Attributes:
        groups: Separate blocks.
        num_rows: R, those of each block.
        num_features: d, the length of a row.
        is_diagonal: Whether it is kept as its diagonal: a table's ``input``.
    """

    groups: int
    num_rows: int
    num_features: int
    is_diagonal: bool = False

    @property
    def is_dual(self) -> bool:
        """Whether the spectrum comes from the rows' Gram matrix, R × R: the rest are zeros."""
        return self.num_rows < self.num_features and not self.is_diagonal

    @property
    def form(self) -> str:
        """What is used of it, in a word."""
        if self.is_diagonal:
            return "diagonal"
        return "estimated" if self.is_estimated else "dual" if self.is_dual else "primal"

    @property
    def is_estimated(self) -> bool:
        """Whether it is too wide for its eigenvalues to be solved for."""
        return is_wide(min(self.num_rows, self.num_features)) and not self.is_diagonal

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix that is used, in float64."""
        if self.is_diagonal:
            return DOUBLE * self.num_features
        return DOUBLE * self.groups * min(self.num_rows, self.num_features) ** 2


@dataclass(eq=False)
class Footprint:
    """Sizes of a layer's rows in one call of the model.

    Attributes:
        num_samples: Samples of that call.
        block: The layer's Fisher block after that call; None where neither ``fisher`` nor ``ekfac``
            is measured.
        laid_out: Count of numbers that are laid out of the input at once; 0 for a linear map.
        uses: Number of calls of the layer.
        is_table: Whether its rows are unit vectors, which are counted.
        product_share: Share of its rows' products that are taken: patches have many in common.
    """

    num_samples: int
    block: FisherBlock | None
    laid_out: int = 0
    uses: int = 0
    is_table: bool = False
    product_share: float = 1.0

    def note(self, use: WeightUse, options: AnalysisOptions) -> None:
        """Add one use of the layer's weight."""
        operation, inputs = use.operation, use.inputs.detach()
        if operation.window is not None:
            rows = moment_rows(operation, inputs, replace(options, bias=False))
            numbers = rows.images if isinstance(rows, PatchRows) else rows.dense()
            if isinstance(rows, PatchRows):
                height, width = operation.window.kernel_size
                shifts = ((2 * height - 1) * (2 * width - 1) + 1) / 2
                self.product_share = shifts / (height * width) ** 2
            self.laid_out = max(self.laid_out, numbers.numel())
        if self.block is not None:
            self.block.forward(operation, inputs, use.output_shape, self.num_samples, self.uses)
        self.uses += 1
        self.is_table = operation.num_entries > 0


@contextmanager
def footprints(
    model: nn.Module, catalogue: Catalogue, options: AnalysisOptions, num_samples: int
) -> Iterator[Mapping[str, Footprint]]:
    """Record the sizes of the layers' rows while the model is called once, also on ``meta``.

    Args:
        model: The network.
        catalogue: The layers.
        options: What is to be measured of them.
        num_samples: Number of samples that the model is called on.

    Yields:
        The footprint of each layer, complete after the call.
    """
    selected, network = select_layers(model, options).layers, NetworkFisher()
    found: dict[str, Footprint] = {}
    for layer in catalogue.layers:
        about = selected[layer.name], options, network, PassMode.SEVERAL_PASSES
        block = fisher_block(layer.name, *about)
        found[layer.name] = Footprint(num_samples, block)
    measured = {name: selected[name] for name in found}
    with watched(measured, lambda name, use, _source: found[name].note(use, options)):
        yield found


@dataclass(frozen=True)
class LayerCost:
    """One layer under one analysis.

    Attributes:
        layer: Sizes of the layer.
        footprint: Sizes of its rows.
        num_samples: Number N of samples of a snapshot, of all batches together.
        num_signals: Number of back-propagations of each.
        matrices: Matrices that are measured.
        batch_size: Number of samples that come at once.
    """

    layer: LayerInfo
    footprint: Footprint
    num_samples: int
    num_signals: int
    matrices: tuple[Matrix, ...]
    batch_size: int

    @property
    def in_batches(self) -> bool:
        """Whether the samples come in more than one batch."""
        return self.batch_size < self.num_samples

    @property
    def num_rows(self) -> int:
        """Rows of ``input``: N·T, of all uses."""
        return self.num_samples * self.layer.rows_per_sample

    @property
    def sides(self) -> dict[Matrix, Sides]:
        """The sides of both factors and of the Fisher block, as far as they are needed."""
        layer, signals = self.layer, self.num_signals
        outputs, weights = layer.d_out // layer.groups, layer.spectrum_length(Matrix.FISHER)
        every = {
            Matrix.INPUT: Sides(
                layer.groups,
                self.num_rows,
                layer.d_in,
                is_diagonal=self.footprint.is_table and not layer.is_reduced,
            ),
            Matrix.GRAD_OUTPUT: Sides(layer.groups, self.num_rows * signals, outputs),
            Matrix.FISHER: Sides(1, self.num_samples * signals, weights),
        }
        products = {Matrix.KFAC, Matrix.EKFAC} & {*self.matrices}
        product = {Matrix.INPUT, Matrix.GRAD_OUTPUT} if products else set()
        if not layer.has_factors:
            del every[Matrix.INPUT], every[Matrix.GRAD_OUTPUT]
        return {matrix: every[matrix] for matrix in every if matrix in {*product, *self.matrices}}

    @property
    def finite_share(self) -> float:
        """The largest p for which κ_p of both factors can be finite."""
        return min([1.0, *(sides.num_rows / sides.num_features for sides in self._factors)])

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the matrices whose eigenvalues are taken."""
        return sum(sides.num_bytes for sides in self.sides.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes kept until a snapshot is complete, but for what ``fisher`` keeps.

        The weight's gradient is; rows that come at once are done with at once. Of several portions
        a primal is their sum, in float64, while for a dual the rows are kept (a convolution's as
        images, which are smaller); and a copy of the weight, which may change in between.
        """
        if not self.matrices:
            return 0
        num_weights = self.layer.d_out * (self.layer.fan_in or self.layer.d_in)
        gradient = num_weights * (DOUBLE if self.in_batches else SINGLE)
        in_portions = self.in_batches or self.num_signals > 1 or self.layer.uses > 1
        if not in_portions:
            return gradient
        rows = (SINGLE * s.groups * s.num_rows * s.num_features for s in self._factors if s.is_dual)
        sums = (sides.num_bytes for sides in self._factors if not sides.is_dual)
        return gradient + SINGLE * num_weights + sum(rows) + sum(sums)

    @property
    def row_bytes(self) -> int:
        """Bytes of the rows that are laid out at once, in float32: of inputs or gradients.

        Many pixels of few channels are multiplied as they lie, unless ``center`` is asked for.
        """
        if not (self.footprint.laid_out and self.sides):
            return 0
        num_samples = min(self.batch_size, self.num_samples)
        inputs = self.footprint.laid_out // self.footprint.num_samples
        positions, d_out = self.layer.positions, self.layer.d_out
        gradients = positions * d_out if positions < d_out // self.layer.groups else 0
        return SINGLE * num_samples * max(inputs, gradients)

    @property
    def fisher_bytes(self) -> int:
        """Bytes that ``fisher`` and ``ekfac`` keep of the rows; 0 where they are not measured."""
        block = self.footprint.block
        if block is None:
            return 0
        # Within one pass the graph keeps the inputs anyway, so they cost nothing more.
        kept = block.kept_bytes(self.num_signals, inputs=self.in_batches)
        return kept * self.num_samples // self.footprint.num_samples

    @property
    def _factors(self) -> list[Sides]:
        return [sides for matrix, sides in self.sides.items() if matrix is not Matrix.FISHER]
