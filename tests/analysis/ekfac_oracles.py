"""EKFAC by brute force: dense gradients by torch.func, dense Kronecker products; float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from tests.analysis import oracles

LossFunction = Callable[[Tensor, Tensor], Tensor]
Root = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Dense:
    """A Fisher block and its approximations, formed; by group, output and input."""

    fisher: Tensor
    kfac: Tensor
    ekfac: Tensor
    values: Tensor

    def cosine(self, approximation: Tensor) -> float:
        norms = self.fisher.norm() * approximation.norm()
        return float((self.fisher * approximation).sum() / norms)

    def relative_error(self, approximation: Tensor) -> float:
        return float((self.fisher - approximation).norm() / self.fisher.norm())


def gradients(
    model: nn.Module, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The gradient of each sample's own loss, [N, ...] of every parameter."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_fn(functional_call(model, parameters, (x[None],)), y[None])

    found: dict[str, Tensor] = vmap(grad(loss), (None, 0, 0))(parameters, inputs, targets)
    return found


def all_labels(model: nn.Module, root: Root, inputs: Tensor) -> dict[str, Tensor]:
    """The rows rᵀ ∂f_n/∂w of every column r of a root of the loss's Hessian, [N · columns, ...]."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, parameters, (x[None],))[0]
        return out

    jacobians = vmap(jacrev(outputs), (None, 0))(parameters, inputs)
    roots = torch.stack([root(out.detach()) for out in model(inputs)])
    return {
        name: torch.einsum("nkc,nk...->nc...", roots, of).flatten(0, 1)
        for name, of in jacobians.items()
    }


def rows_of(
    model: nn.Module,
    name: str,
    losses: Sequence[LossFunction],
    inputs: Tensor,
    targets: Tensor,
    *,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Rows a [groups, N, T, d_in] and g [groups, N · losses, T, d_out / groups], all uses."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    all_a, all_g = [], []
    for n in range(len(inputs)):
        for number, loss in enumerate(losses):
            calls = oracles.calls(model, name, loss, inputs[n : n + 1], targets[n : n + 1])
            if isinstance(layer, nn.Conv2d):
                a = torch.cat([oracles.conv_rows(layer, x) for x, _ in calls], 2)
                g = torch.cat([oracles.pixel_rows(x, groups) for _, x in calls], 2)
            else:
                a = torch.cat([oracles.linear_rows(x) for x, _ in calls], 2)
                g = torch.cat([oracles.linear_rows(x) for _, x in calls], 2)
            all_g.append(g)
            if number == 0:
                all_a.append(a)
    a = torch.cat(all_a, 1)
    has_bias = bias and layer.bias is not None
    return oracles.with_ones(a) if has_bias else a, torch.cat(all_g, 1)


def dense(a: Tensor, g: Tensor, rows: Tensor, num_samples: int) -> Dense:
    """All matrices of a layer, from its rows and its samples' gradients [signals · N, d]."""
    of_inputs = oracles.input_matrices(a)
    of_grads = oracles.grad_output_matrices(g) * (g.shape[1] / num_samples)
    fisher = rows.T @ rows / num_samples
    products = [torch.kron(y, x) for x, y in zip(of_inputs, of_grads, strict=True)]
    bases = [
        torch.kron(torch.linalg.eigh(y).eigenvectors, torch.linalg.eigh(x).eigenvectors)
        for x, y in zip(of_inputs, of_grads, strict=True)
    ]
    basis = torch.block_diag(*bases)  # type: ignore[no-untyped-call]
    values = (basis.T @ fisher @ basis).diagonal()
    return Dense(
        fisher=fisher,
        kfac=torch.block_diag(*products),  # type: ignore[no-untyped-call]
        ekfac=basis @ values.diag() @ basis.T,
        values=values.sort(descending=True).values,
    )


def vec(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Gradients [N, ...] of a weight, and of its bias, as [N, d]."""
    weight = weight.flatten(2)
    return (weight if bias is None else torch.cat([weight, bias[:, :, None]], 2)).flatten(1)
