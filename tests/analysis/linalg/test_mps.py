"""Apple's MPS has no float64: sums and spectra go to the CPU. A stand-in device that refuses it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from condexp.analysis.layers.calls import ForwardPass, PassMode
from condexp.analysis.layers.kinds import layer_of
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.loss.denominator import loss_denominator
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import LayerSnapshot
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.moment import SolveQueue
from condexp.analysis.vocabulary import WHOLE_MATRICES, Matrix
from tests.cases import normal


class OnMps(Tensor):
    """A tensor that says it is on MPS; only ``cpu()`` gives its values. Float64 is refused."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnMps":
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        made: OnMps = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype
        )
        made.on_cpu = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("mps")

    def cpu(self, *_: object) -> Tensor:
        return self.on_cpu

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: object, args: Sequence[object] = (), kwargs: Any = None
    ) -> object:
        given = (args, kwargs or {})
        leaves = tree.tree_leaves(given)
        if any(isinstance(x, Tensor) and not isinstance(x, OnMps) and x.ndim for x in leaves):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        args, kwargs = tree.tree_map_only(OnMps, lambda x: x.on_cpu, given)
        return tree.tree_map_only(Tensor, cls, func(*args, **kwargs))


def test_the_stand_in_refuses_what_mps_refuses() -> None:
    tensor = OnMps(torch.ones(2, 3))
    assert tensor.device.type == "mps"
    for convert in (
        lambda: tensor.double(),
        lambda: tensor.sum(1, dtype=torch.float64),
        lambda: torch.linalg.vector_norm(tensor, dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match="float64"):
            convert()
    with pytest.raises(RuntimeError, match="same device"):
        tensor + torch.ones(2, 3)
    assert type((tensor * 2).cpu()) is Tensor
    assert tensor.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16])
def test_moments(dtype: torch.dtype, center: bool, row_dtype: torch.dtype) -> None:
    rows = normal(2, 300, 4).to(row_dtype)
    spectra = []
    for place in (lambda x: x, OnMps):
        moment = SecondMoment(Scale.SUM, center=center)
        for piece in torch.split(rows, 200, dim=1):
            moment.add(place(piece), 100, dtype)
        spectra.append(moment.spectrum())
        assert moment.matrix().device.type == "cpu"
        assert moment.row_dtype == row_dtype
    assert torch.equal(spectra[0].eigenvalues, spectra[1].eigenvalues)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_moments_past_the_range_of_float32(size: float) -> None:
    rows = (size * normal(1, 10, 3)).float()
    spectra = []
    for place in (lambda x: x, OnMps):
        moment = SecondMoment(Scale.MEAN)
        moment.add(place(rows), 10, torch.float32)
        spectra.append(moment.spectrum())
    assert torch.equal(spectra[0].eigenvalues, spectra[1].eigenvalues)


def test_spectra_and_denominators() -> None:
    factor = normal(1, 3, 5).float()
    ours = Spectrum.from_factor(OnMps(factor), dtype=torch.float64)
    assert torch.equal(
        ours.eigenvalues, Spectrum.from_factor(factor, dtype=torch.float64).eigenvalues
    )
    weights = torch.tensor([1.0, 2.0, 4.0])
    loss_fn = nn.CrossEntropyLoss(weight=weights, ignore_index=0)
    targets = torch.tensor([0, 2, 1, 2])
    assert loss_denominator(loss_fn, targets, 4) == 10.0
    loss_fn.weight = OnMps(weights)
    assert loss_denominator(loss_fn, OnMps(targets), 4) == 10.0


LAYERS: dict[str, Callable[[], tuple[nn.Linear | nn.Conv2d, Tensor]]] = {
    "linear": lambda: (nn.Linear(5, 3), normal(7, 5).float()),
    "convolution": lambda: (
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        normal(7, 4, 5, 5).float(),
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("options", [{}, {"center": True}, {"bias": True}])
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16])
def test_everything_of_a_layer(
    layer: str, options: dict[str, bool], row_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module, inputs = LAYERS[layer]()
    with torch.no_grad():
        output = module(inputs).to(row_dtype)
    weight, grad_output = module.weight.detach(), output.sin()
    grad = torch.autograd.grad(module(inputs), module.weight, grad_output.float())[0]
    records = []
    for place in (lambda x: x, OnMps):
        of_module = replace(layer_of(module), weight=place(weight))
        # An eigenbasis of centred factors is no basis of gradients that are not: refused together.
        without = {Matrix.EKFAC} if options.get("center") else set()
        chosen = AnalysisOptions([m for m in WHOLE_MATRICES if m not in without], **options)  # type: ignore[arg-type]
        statistics = LayerStatistics(
            "layer", of_module, chosen, pass_mode=PassMode.USER_PASSES, queue=SolveQueue()
        )
        for number in (0, 1):
            current, operation = ForwardPass(number, 7, 7.0), of_module.operation
            given, shape = place(inputs.to(row_dtype)), output.shape
            about = shape, row_dtype, lambda grad: grad
            use = WeightUse(operation, given, given, given, *about)
            statistics.forward(use, current)
            statistics.backward(operation, 0, place(grad_output), current)
            statistics.weight_backward(place(grad), current, in_parts=False)
        plain = statistics.plain()
        assert plain is not None
        records.append(statistics.record(plain, 0.1))
    assert_equal(*records)


def assert_equal(one: LayerSnapshot, other: LayerSnapshot) -> None:
    for matrix in ("input", "grad_output", "weight", "weight_grad"):
        assert torch.equal(getattr(one, matrix).eigenvalues, getattr(other, matrix).eigenvalues)
    for name in ("weight_norm", "grad_norm", "effective_lr", "input_mean_fraction"):
        assert getattr(one, name) == getattr(other, name)
