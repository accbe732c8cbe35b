"""Dense Hessians and Gauss–Newton matrices by torch.func, float64: nothing of the package's."""

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

LossFunction = Callable[[Tensor, Tensor], Tensor]


class BatchNorm(nn.Module):
    """Batch normalisation in training mode, written out.

    torch.func differentiates torch's own forward over reverse, and gives a matrix that is not even
    symmetric (torch 2.14: statistics that were saved count as constants).
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.ndim) if d != 1]
        centred = x - x.mean(dims, keepdim=True)
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = (centred.square().mean(dims, keepdim=True) + self.eps).rsqrt()
        return centred * scale * self.weight.view(shape) + self.bias.view(shape)


def written_out(model: nn.Module) -> nn.Module:
    """A copy whose normalisations in training mode are those written out."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and child.training:
                setattr(module, name, BatchNorm(child))
    return model


def _hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def evaluate(vector: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch's own forward mode loads what torch deprecates
            warnings.simplefilter("ignore", FutureWarning)
            found: Tensor = torch.func.hessian(function)(vector)
        return found

    return evaluate


def _function(
    model: nn.Module, names: Sequence[str]
) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Outputs as a function of one vector of some parameters, and the vector."""
    model = written_out(model)
    own = {name: model.get_parameter(name).detach() for name in names}
    sizes = [p.numel() for p in own.values()]

    def outputs(vector: Tensor, inputs: Tensor) -> Tensor:
        parts = {
            n: v.view_as(own[n]) for n, v in zip(names, torch.split(vector, sizes), strict=True)
        }
        result: Tensor = functional_call(model, parts, (inputs.clone(),))
        return result

    return outputs, torch.cat([p.flatten() for p in own.values()])


def dense_hessian(
    model: nn.Module, loss: LossFunction, inputs: Tensor, targets: Tensor, names: Sequence[str]
) -> Tensor:
    """The Hessian with respect to some parameters."""
    outputs, vector = _function(model, names)
    found: Tensor = _hessian(lambda v: loss(outputs(v, inputs), targets))(vector)
    return found.detach()


def dense_ggn(
    model: nn.Module, loss: LossFunction, inputs: Tensor, targets: Tensor, names: Sequence[str]
) -> Tensor:
    """The Gauss–Newton matrix JᵀHJ with respect to some parameters."""
    outputs, vector = _function(model, names)
    jacobian = jacrev(lambda v: outputs(v, inputs))(vector).flatten(0, -2)
    f = outputs(vector, inputs)
    inner: Tensor = _hessian(lambda o: loss(o.view_as(f), targets))(f.flatten())
    found: Tensor = (jacobian.T @ inner @ jacobian).detach()
    return found


def eigenvalues(matrix: Tensor) -> Tensor:
    """All, descending."""
    found: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0).detach()
    return found
