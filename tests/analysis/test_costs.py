"""What ``condexp layers`` says of sides and memory, against what the engine really takes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condexp.analysis.costs import LayerCost, footprints
from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.layers import rows as analysis_rows
from condexp.analysis.layers.calls import LayerCall, PassMode
from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.linalg.rows.dense import DenseRows
from condexp.analysis.linalg.rows.pixels import PixelRows
from condexp.analysis.linalg.rows.stride1_patches import PatchRows
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.vocabulary import WHOLE_MATRICES, Matrix

MATRICES: dict[str, tuple[Matrix, ...]] = {
    "all": tuple(matrix for matrix in WHOLE_MATRICES if matrix is not Matrix.EKFAC),
    "input": (Matrix.INPUT,),
    "grad_output": (Matrix.GRAD_OUTPUT,),
    "kfac": (Matrix.KFAC,),
    "fisher": (Matrix.FISHER,),
    "weight": (Matrix.WEIGHT,),
}


def model() -> nn.Module:
    """A convolution, one in groups, a depthwise one, and two linear layers of unequal sides."""
    return nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, stride=2, groups=2),
        nn.Conv2d(96, 96, 5, groups=96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 200),
        nn.ReLU(),
        nn.Linear(200, 48),
    )


def costs(
    net: nn.Module, options: AnalysisOptions, num_samples: int, batch_size: int
) -> tuple[LayerCost, ...]:
    """Those of an analysis of so many images, foretold from two of them without values."""
    with torch.device("meta"):
        twin, images = model(), torch.zeros(2, 8, 14, 14)
    catalogue = trace_layers(net, torch.zeros(2, 8, 14, 14), options)
    with footprints(twin, catalogue, options, num_samples=2) as found:
        twin(images)
    return tuple(
        LayerCost(layer, found[layer.name], num_samples, 1, options.matrices, batch_size)
        for layer in catalogue.layers
    )


def measured(net: nn.Module, options: AnalysisOptions, sizes: tuple[int, ...]) -> MeasurementHooks:
    """Passes of so many samples each, and all that is left of them."""
    mode = PassMode.ONE_PASS if len(sizes) == 1 else PassMode.SEVERAL_PASSES
    hooks = MeasurementHooks(net, options, pass_mode=mode)
    with hooks:
        for size in sizes:
            net.zero_grad()
            net(torch.randn(size, 8, 14, 14)).square().mean().backward()
    hooks.statistics.queue.solve()  # not by a snapshot, which would free the rest
    return hooks


def tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor that a layer's statistics hold; a Fisher block's are counted on their own."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from tensors(part)
    elif type(thing).__module__.startswith("condexp.") and not isinstance(thing, FisherBlock):
        for part in getattr(thing, "__dict__", {}).values():
            yield from tensors(part)


@pytest.mark.parametrize("asked", MATRICES)
@pytest.mark.parametrize(
    ("conv_input", "bias"), [("patches", False), ("patches", True), ("channels", True)]
)
@pytest.mark.parametrize("num_samples", [2, 40])
def test_the_side_that_is_used(
    asked: str, bias: bool, conv_input: str, num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrices whose eigenvalues the engine takes are those foretold."""
    options = AnalysisOptions(
        MATRICES[asked], bias=bias, conv_input=conv_input, precision="float32"  # type: ignore[arg-type]
    )  # fmt: skip
    net, taken = model(), []
    plain = Spectrum.from_matrix.__func__  # type: ignore[attr-defined]

    def noting(cls: type[Spectrum], /, matrix: Tensor, **more: Any) -> Spectrum:
        square = matrix[None] if matrix.ndim == 2 else matrix
        taken.append(8 * square.numel())
        spectrum: Spectrum = plain(cls, matrix, **more)
        return spectrum

    monkeypatch.setattr(Spectrum, "from_matrix", classmethod(noting))
    hooks = measured(net, options, (num_samples,))
    assert hooks.statistics.num_samples == num_samples
    foretold = [
        sides.num_bytes
        for cost in costs(net, options, num_samples, num_samples)
        for sides in cost.sides.values()
    ]
    assert sorted(taken) == sorted(foretold)


@pytest.mark.parametrize("asked", MATRICES)
@pytest.mark.parametrize(
    ("conv_input", "bias"), [("patches", False), ("patches", True), ("channels", True)]
)
@pytest.mark.parametrize("sizes", [(4,), (20, 20)])
def test_what_is_kept_of_each_layer(
    asked: str, bias: bool, conv_input: str, sizes: tuple[int, ...]
) -> None:
    matrices = MATRICES[asked]
    options = AnalysisOptions(
        matrices, bias=bias, conv_input=conv_input, precision="float32"  # type: ignore[arg-type]
    )  # fmt: skip
    torch.manual_seed(0)
    net = model()
    hooks = measured(net, options, sizes)
    for cost in costs(net, options, sum(sizes), max(sizes)):
        layer, statistics = cost.layer, hooks.statistics[cost.layer.name]
        own = {parameter.data_ptr() for parameter in net.parameters()}
        held = sum(t.nbytes for t in tensors(statistics) if t.data_ptr() not in own)
        # Sums of rows and the like, a few numbers for each feature, are not counted.
        vectors = 8 * (8 * layer.groups * layer.d_in + 4 * layer.d_out)
        duals = [m for m, s in cost.sides.items() if s.is_dual and m is not Matrix.FISHER]
        assert held <= cost.kept_bytes + vectors
        if not (duals and layer.type == "Conv2d"):  # else images are kept, smaller than patches
            assert held >= cost.kept_bytes


def test_rows_that_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest copy of a convolution's rows is the one announced."""
    copies: dict[str, int] = {}
    options, net = AnalysisOptions(precision="float32"), model()  # type: ignore[arg-type]

    def note(function: str) -> None:
        plain = getattr(analysis_rows, function)

        def noting(operation: Operation, given: Tensor, *more: object) -> Any:
            rows = plain(operation, given, *more)
            name, num_bytes = at_work[0].name, 0
            if not isinstance(rows, PixelRows):
                dense = rows.images if isinstance(rows, PatchRows) else rows
                dense = dense.values if isinstance(dense, DenseRows) else dense
                num_bytes = dense.nbytes
            copies[name] = max(copies.get(name, 0), num_bytes)
            return rows

        monkeypatch.setattr(f"condexp.analysis.statistics.layer.{function}", noting)

    note("moment_rows")
    note("gradient_rows")
    at_work: list[LayerStatistics] = []

    def note_layer(method: str) -> None:
        plain = getattr(LayerStatistics, method)

        def noting(layer: LayerStatistics, *args: Any, **kwargs: Any) -> Any:
            at_work[:] = [layer]
            return plain(layer, *args, **kwargs)

        monkeypatch.setattr(LayerStatistics, method, noting)

    note_layer("forward")
    note_layer("backward")
    measured(net, options, (4,))
    for cost in costs(net, options, num_samples=12, batch_size=4):
        if cost.layer.type == "Conv2d":
            assert copies[cost.layer.name] == cost.row_bytes
        else:
            assert cost.row_bytes == 0


@pytest.mark.parametrize("sizes", [(5,), (4, 4)])
def test_what_fisher_keeps(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    options, net = AnalysisOptions((Matrix.FISHER,)), model()
    calls: dict[str, list[LayerCall]] = {}
    held: dict[str, int] = {}
    plain = LayerCall.__post_init__

    def note(call: LayerCall) -> None:
        calls.setdefault(call.name, []).append(call)
        plain(call)

    def add_up(block: FisherBlock) -> None:
        rows = [] if block._forms else calls[block.name]
        grads = [grad for call in rows for grad in call.grads]
        # While the graph of a single pass lives it has the inputs.
        inputs = [call.inputs for call in rows if len(sizes) > 1]
        held[block.name] = sum(t.nbytes for t in (*block._gradients, *grads, *inputs))

    monkeypatch.setattr(LayerCall, "__post_init__", note)
    monkeypatch.setattr(FisherBlock, "_compute", add_up)  # when all samples are in
    hooks = measured(net, options, sizes)
    assert all(block.measures().fisher is None for block in hooks.statistics.blocks.values())
    for cost in costs(net, options, sum(sizes), max(sizes)):
        assert held[cost.layer.name] == cost.fisher_bytes > 0
