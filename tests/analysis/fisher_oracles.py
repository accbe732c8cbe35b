"""The Fisher matrix by brute force: one backward pass a sample, or a sample and output, dense."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.analysis import oracles

LossFunction = Callable[[Tensor, Tensor], Tensor]


def vec(layer: nn.Linear | nn.Conv2d, gradient: Sequence[Tensor]) -> Tensor:
    """The gradient of a weight, and of a bias if it is given, as one vector."""
    weight, *bias = (part.detach().flatten(1) if part.ndim > 1 else part for part in gradient)
    return torch.cat([weight, *(part[:, None] for part in bias)], 1).flatten()


def parameters(layer: nn.Linear | nn.Conv2d, *, bias: bool) -> list[Tensor]:
    return [layer.weight] if layer.bias is None or not bias else [layer.weight, layer.bias]


def empirical(
    model: nn.Module,
    names: Sequence[str],
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    bias: bool = False,
) -> dict[str, Tensor]:
    """Gradients of each sample's own loss [N, d] of each layer; samples must not mix."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for n in range(len(inputs)):
        loss = loss_fn(model(inputs[n : n + 1]), targets[n : n + 1])
        for name in names:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            wanted = parameters(layer, bias=bias)
            rows[name].append(vec(layer, torch.autograd.grad(loss, wanted, retain_graph=True)))
    return {name: torch.stack(of_layer) for name, of_layer in rows.items()}


def jacobian_rows(
    model: nn.Module,
    names: Sequence[str],
    inputs: Tensor,
    root: Callable[[Tensor], Tensor],
    *,
    bias: bool = False,
) -> dict[str, Tensor]:
    """Rows rᵀ ∂f_n/∂w for every column r of a square root of the loss's Hessian [C, columns]."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for n in range(len(inputs)):
        output = model(inputs[n : n + 1])[0].flatten()
        for column in root(output.detach()).T:
            for name in names:
                layer = model.get_submodule(name)
                assert isinstance(layer, nn.Linear | nn.Conv2d)
                wanted = parameters(layer, bias=bias)
                grads = torch.autograd.grad(output, wanted, column, retain_graph=True)
                rows[name].append(vec(layer, grads))
    return {name: torch.stack(of_layer) for name, of_layer in rows.items()}


def softmax_root(output: Tensor) -> Tensor:
    """The symmetric square root of diag(p) − ppᵀ."""
    p = output.softmax(0)
    values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def squared_root(output: Tensor) -> Tensor:
    """That of 2/C·I, the Hessian of a mean of squares."""
    return math.sqrt(2 / len(output)) * torch.eye(len(output), dtype=output.dtype)


def batch_gradients(
    model: nn.Module, name: str, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> Tensor:
    """G_n [N, d] from one pass of the whole batch, a sample and call at a time; T = 1 or images."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    total = torch.zeros(len(inputs), *layer.weight.shape, dtype=torch.float64)
    for a, g in oracles.calls(model, name, loss_fn, inputs, targets):
        for n in range(len(inputs)):
            weight = torch.zeros_like(layer.weight, requires_grad=True)
            if isinstance(layer, nn.Linear):
                output = F.linear(a[n : n + 1], weight)
            else:
                output = layer._conv_forward(a[n : n + 1], weight, None)
            grads = torch.autograd.grad(output, weight, len(inputs) * g[n : n + 1])
            total[n] += grads[0]
    return total.flatten(1)


def eigenvalues(rows: Tensor, num_samples: int) -> Tensor:
    """The min(rows, d) eigenvalues of 1/N Σ r rᵀ: squared singular values, no Gram matrix."""
    values: Tensor = torch.linalg.svdvals(rows) ** 2 / num_samples
    return values


def network_eigenvalues(rows: dict[str, Tensor], num_samples: int) -> Tensor:
    """Those of the concatenated gradients."""
    return eigenvalues(torch.cat(list(rows.values()), 1), num_samples)
