"""Products of a network's Hessian and Gauss–Newton matrix with vectors, by differentiating twice.

Pearlmutter's product of a batch takes one more back-propagation through the graph of its gradient,
which is kept; a functional transform would take a forward pass besides, and cannot run a network
whose buffers change in it (BatchNorm in training mode).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from condexp.analysis.linalg.krylov import Product
from condexp.analysis.model_state import preserved_state
from condexp.analysis.vocabulary import Matrix
from condexp.analysis.watch import tell
from condexp.errors import InputError

Outputs = Callable[[], Any]


@dataclass(frozen=True, eq=False)
class LossPass:
    """One batch: a pass of the network, and the loss of its outputs.

    Attributes:
        outputs: Runs the network on the batch.
        loss: From the outputs to the loss, a scalar.
        weight: The batch's share w_b in the mean Σ w_b L_b.
    """

    outputs: Outputs
    loss: Callable[[Any], Tensor]
    weight: float = 1.0


class BatchGraph:
    """The graphs of one batch, kept for any number of products.

    Args:
        batch: The batch.
        parameters: All parameters of the blocks.
        matrices: What products are wanted of.

    Attributes:
        point: The outputs, where ``ggn`` is wanted.

    Raises:
        InputError: If the graph has a gap that torch does not tell of.
    """

    def __init__(
        self, batch: LossPass, parameters: Sequence[Tensor], matrices: set[Matrix]
    ) -> None:
        self._outputs, self._batch = batch.outputs(), batch
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._gradients: tuple[Tensor | None, ...] = ()
        if Matrix.HESSIAN in matrices:
            loss = batch.loss(self._outputs)
            self._gradients = torch.autograd.grad(
                loss, parameters, create_graph=True, allow_unused=True
            )
            _refuse_gaps(self._gradients)
        if Matrix.GGN in matrices:
            self._linearise(parameters)

    def _linearise(self, parameters: Sequence[Tensor]) -> None:
        f = self._outputs
        if not isinstance(f, Tensor):
            raise InputError(
                f"matrix 'ggn' needs a model whose output is one tensor, this one returns "
                f"{type(f).__name__}: ask for 'hessian'."
            )
        self._signal = torch.zeros_like(f, requires_grad=True)
        self._pulled = torch.autograd.grad(
            f, parameters, self._signal, create_graph=True, allow_unused=True
        )
        _refuse_gaps(self._pulled)
        self.point = f.detach().requires_grad_()
        loss = self._batch.loss(self.point)
        (self._slope,) = torch.autograd.grad(loss, self.point, create_graph=True)

    def product(
        self, matrix: Matrix, block: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return one product of a block.

        Args:
            matrix: Of which matrix.
            block: The block's parameters.
            vector: A tensor a parameter.

        Returns:
            Likewise.
        """
        if matrix is Matrix.HESSIAN:
            gradients = [self._gradients[self._index[id(parameter)]] for parameter in block]
            return _pull(gradients, vector, block)
        return _pull([self._outputs], [self.curve(self.push(block, vector))], block)

    def push(self, block: Sequence[Tensor], vector: Sequence[Tensor]) -> Tensor:
        """Return Jv, with J the Jacobian of the outputs.

        Args:
            block: The block's parameters.
            vector: v, a tensor a parameter.

        Returns:
            Of the outputs' shape.
        """
        # By two transposed products: of u ↦ Jᵀu, which is linear, the transpose at any u.
        pulled = [self._pulled[self._index[id(parameter)]] for parameter in block]
        return _pull(pulled, vector, [self._signal])[0]

    def curve(self, pushed: Tensor) -> Tensor:
        """Return the product of the loss's Hessian by the outputs with a vector.

        Args:
            pushed: Of the outputs' shape.

        Returns:
            Of the same.
        """
        return _pull([self._slope], [pushed], [self.point])[0]


def _refuse_gaps(gradients: Sequence[Tensor | None]) -> None:
    """Refuse gradients that are cut off from what they were computed of.

    Autograd would leave the terms out without a word, as it does not go where no input is.

    Raises:
        InputError: If there is such a gap.
    """
    seen: set[Any] = set()
    waiting: list[Any] = [gradient.grad_fn for gradient in gradients if gradient is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise InputError(
                "matrices 'hessian' and 'ggn' differentiate the network twice, and it has a "
                "torch.autograd.Function that is once_differentiable: write its backward in "
                "operations that torch can differentiate, or leave these matrices out."
            )
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]


def _pull(
    of: Sequence[Tensor | None], vector: Sequence[Tensor], to: Sequence[Tensor]
) -> list[Tensor]:
    """Return a vector, back-propagated, and keep the graph; what is not reached has zeros."""
    pairs = [(o, v) for o, v in zip(of, vector, strict=True) if o is not None and o.requires_grad]
    if not pairs:
        return [torch.zeros_like(each) for each in to]
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        list(to),
        [v for _, v in pairs],
        retain_graph=True,
        allow_unused=True,
    )
    return [torch.zeros_like(t) if g is None else g for t, g in zip(to, found, strict=True)]


class CurvatureProducts:
    """Products of a network's curvature matrices on some batches, of blocks of its parameters.

    Every pass of a batch draws the same random numbers (dropout) and meets the same buffers: all
    products are of one function of the weights, in the modes that the modules are in. BatchNorm in
    training mode is a function of the whole batch, statistics and all.

    Args:
        model: The network; the caller preserves its state.
        batches: The batches; the graphs of a single one are kept, those of several are made anew
            for each set of vectors.
        parameters: All parameters of the blocks, leaves that require gradients.
        matrices: ``hessian``, ``ggn``, or both.

    Attributes:
        num_products: Number of products with a vector so far.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[LossPass],
        parameters: Sequence[Tensor],
        matrices: Iterable[Matrix],
    ) -> None:
        self._model, self._batches, self._parameters = model, batches, parameters
        self._matrices = set(matrices)
        self._kept: BatchGraph | None = None
        self.num_products = 0

    def of(self, matrix: Matrix, block: Sequence[Tensor]) -> Product:
        """Return the product of a block with columns ``[n, s]``, float64.

        Args:
            matrix: ``hessian`` or ``ggn``.
            block: The block's parameters.

        Returns:
            The function.
        """
        sizes = [parameter.numel() for parameter in block]

        def product(columns: Tensor) -> Tensor:
            result = torch.zeros_like(columns)
            tell("product with a vector", self.num_products, 0)
            with twice_differentiable():
                for graph, weight in self._graphs():
                    for number in range(columns.shape[1]):
                        pieces = torch.split(columns[:, number], sizes)
                        vector = [v.to(p).view_as(p) for v, p in zip(pieces, block, strict=True)]
                        found = graph.product(matrix, block, vector)
                        flat = torch.cat([piece.detach().flatten() for piece in found])
                        result[:, number] += weight * flat.to(result)
            self.num_products += columns.shape[1]
            return result

        return product

    def _graphs(self) -> Iterator[tuple[BatchGraph, float]]:
        if len(self._batches) == 1:
            if self._kept is None:
                self._kept = BatchGraph(self._batches[0], self._parameters, self._matrices)
            yield self._kept, self._batches[0].weight
            return
        for batch in self._batches:
            # Random states and buffers are put back, so that the next pass is the same.
            with preserved_state(self._model):
                yield BatchGraph(batch, self._parameters, self._matrices), batch.weight


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Choose attention that can be differentiated twice; say so where something cannot.

    Yields:
        Nothing.

    Raises:
        InputError: If torch cannot differentiate a pass or its gradient.
        OutOfMemoryError: As torch raised it.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            "matrices 'hessian' and 'ggn' differentiate the network twice, and torch cannot: "
            f"{said[0]} Leave them out, or the operation that it names."
        ) from error
