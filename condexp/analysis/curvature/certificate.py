"""Certificate of second derivatives: products with a vector against differences, in float64.

Torch differentiates a function's backward as it is written. One that detaches, or works on
``.data``, has a second derivative that is wrong without a word, and may be symmetric.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from condexp.analysis.curvature.passes import BatchGraph, LossPass, twice_differentiable
from condexp.analysis.model_state import preserved_state
from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError

NUM_SAMPLES = 32
"""Samples of a certificate: a wrong derivative is wrong on a few."""
TOLERANCE = 1e-4
"""Distance of a product from a difference, relative. Both are float64: it is no rounding."""
STEPS = (1e-4, 1e-6, 1e-8)
"""Lengths of the steps, relative to the weights. A shorter one avoids the kinks of a longer."""
ROUNDING = 1e-13
AGREE = 0.1
"""Differences agree, of two steps and of both sides, where they are nearer to each other than this
share of their distance from the product."""

Difference = Callable[[float], Tensor]


class WrongDerivativeError(InputError):
    """A second derivative that torch computes is not that of the function."""


def certify_products(
    model: nn.Module, batch: LossPass, matrices: Iterable[Matrix], seed: int
) -> None:
    """Compare products of matrices with a random vector with differences of first derivatives.

    Hv with (∇L(θ + εv) − ∇L(θ − εv)) / 2ε; of the Gauss–Newton matrix Jv with that difference of
    the outputs, and the loss's own Hessian with that of its slope. A product is refused where the
    differences of two steps agree with each other and not with it, and so do those ahead and
    behind. At a kink (a rectifier's input that is 0) they do not: then nothing is said.

    Args:
        model: The network, in float64; it is left as found. The caller enables gradients.
        batch: A pass of it on a few samples.
        matrices: ``hessian``, ``ggn``, or both.
        seed: Of the vector.

    Raises:
        WrongDerivativeError: If a product is wrong.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    vector = [_direction(parameter, generator) for parameter in parameters]
    for matrix in matrices:
        with preserved_state(model), twice_differentiable():
            graph = BatchGraph(batch, parameters, {matrix})
            if matrix is Matrix.HESSIAN:
                product = _flat(graph.product(matrix, parameters, vector))
            else:
                pushed = graph.push(parameters, vector)
        if matrix is Matrix.HESSIAN:
            slopes = _Moved(model, batch, parameters, vector, of_loss=True)
            _compare("'hessian'", product, slopes)
        else:
            outputs = _Moved(model, batch, parameters, vector, of_loss=False)
            _compare("'ggn'", pushed.flatten(), outputs)
            _compare("'ggn'", graph.curve(pushed).flatten(), _LossSlope(batch, graph.point, pushed))


def _direction(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random vector of the size of a parameter, as float64."""
    drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    size = float(parameter.detach().double().square().mean().sqrt()) if parameter.numel() else 0.0
    return drawn.to(parameter.device) * (size or 1e-2)


class _Moved:
    """What a network gives with its weights moved along a vector: its outputs, or ∇L."""

    def __init__(
        self,
        model: nn.Module,
        batch: LossPass,
        parameters: Sequence[Tensor],
        vector: Sequence[Tensor],
        *,
        of_loss: bool,
    ) -> None:
        self._model, self._batch, self._of_loss = model, batch, of_loss
        self._parameters, self._vector = parameters, vector

    def __call__(self, step: float) -> Tensor:
        moves = zip(self._parameters, self._vector, strict=True)
        moved = {id(p): nn.Parameter(p.detach() + step * v) for p, v in moves}
        with preserved_state(self._model), _exchanged(self._model, moved):
            outputs = self._batch.outputs()
            if not self._of_loss:
                return outputs.detach().flatten()  # type: ignore[no-any-return]
            loss = self._batch.loss(outputs)
            leaves = list(moved.values())
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return _flat([
            torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)
        ])


class _LossSlope:
    """The derivative of a loss by the outputs, with these moved along a vector."""

    def __init__(self, batch: LossPass, point: Tensor, vector: Tensor) -> None:
        self._batch, self._point, self._vector = batch, point, vector

    def __call__(self, step: float) -> Tensor:
        moved = (self._point.detach() + step * self._vector).requires_grad_()
        return torch.autograd.grad(self._batch.loss(moved), moved)[0].flatten()


@contextmanager
def _exchanged(model: nn.Module, others: dict[int, nn.Parameter]) -> Iterator[None]:
    """Let a network have other parameters in the place of its own, which are not written to."""
    places = [
        (part, name, parameter)
        for part in model.modules()
        for name, parameter in list(part._parameters.items())
        if parameter is not None and id(parameter) in others
    ]
    try:
        for part, name, parameter in places:
            setattr(part, name, others[id(parameter)])
        yield
    finally:
        for part, name, parameter in places:
            setattr(part, name, parameter)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _compare(matrix: str, product: Tensor, derivative: Difference) -> None:
    """Refuse a product that differences contradict.

    Raises:
        WrongDerivativeError: If they do.
    """
    product = product.detach()
    quotients: list[Tensor] = []
    here = derivative(0.0)
    for step in STEPS:
        ahead, behind = derivative(step), derivative(-step)
        quotient = (ahead - behind) / (2 * step)
        size = max(float(product.norm()), float(quotient.norm()))
        room = TOLERANCE * size + ROUNDING * float(ahead.norm() + behind.norm()) / step
        off = float((quotient - product).norm())
        if not off > room:  # or NaN, of a network that has diverged
            return
        if float((ahead - 2 * here + behind).norm()) / step > AGREE * off:
            continue  # a kink
        if any(float((quotient - other).norm()) <= AGREE * off for other in quotients):
            raise WrongDerivativeError(
                f"matrix {matrix}: its product with a vector is not what differences of first "
                f"derivatives say, which agree with each other: {off / size:.2g} of its length lie "
                "between. A torch.autograd.Function of the model or of the loss probably detaches "
                "in its backward, or uses .data or no_grad there, so that torch cannot "
                "differentiate it again: write its backward in operations on the tensors that it "
                "is given, or leave this matrix out."
            )
        quotients.append(quotient)
