"""The matrices of an analysis by brute force: one backward pass a sample, explicit patches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.spectrum import Spectrum
from tests import reference

LossFunction = Callable[[Tensor, Tensor], Tensor]


def calls(
    model: nn.Module, name: str, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Input and ∂loss/∂output of each call of a module, by zeros added to its outputs."""
    seen: list[Tensor] = []
    zeros: list[Tensor] = []

    def add_zero(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(args[0].detach().clone())
        zeros.append(torch.zeros_like(output, requires_grad=True))
        return output + zeros[-1]

    handle = model.get_submodule(name).register_forward_hook(add_zero)
    try:
        loss = loss_fn(model(inputs), targets)
    finally:
        handle.remove()
    return list(zip(seen, torch.autograd.grad(loss, zeros), strict=True))


def per_sample(
    model: nn.Module, name: str, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs [N, uses, ...] and gradients [N, uses, ...] of a module, a backward pass a sample."""
    all_inputs, all_grads = [], []
    for n in range(len(inputs)):
        of_sample = calls(model, name, loss_fn, inputs[n : n + 1], targets[n : n + 1])
        all_inputs.append(torch.cat([a for a, _ in of_sample]))
        all_grads.append(torch.cat([g for _, g in of_sample]))
    return torch.stack(all_inputs), torch.stack(all_grads)


def linear_rows(tensor: Tensor) -> Tensor:
    """[N, ..., d] as [1, N, T, d]."""
    return tensor.reshape(1, len(tensor), -1, tensor.shape[-1])


def pixel_rows(images: Tensor, groups: int) -> Tensor:
    """[N, C, H, W] as [groups, N, T, C / groups], by slicing the channels."""
    blocks = images.tensor_split(groups, dim=1)
    return torch.stack([block.flatten(2).transpose(1, 2) for block in blocks])


def conv_rows(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """[N, C, H, W] as [groups, N, T, d], pixel by pixel."""
    return reference.conv_patches(
        images,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
    )


def with_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)


def input_matrices(rows: Tensor, *, center: bool = False) -> Tensor:
    """Σ_x of each group, [groups, d, d]."""
    return torch.stack([reference.mean_second_moment(block, center=center) for block in rows])


def grad_output_matrices(rows: Tensor, *, center: bool = False) -> Tensor:
    """Σ_∇h of each group, [groups, d, d]."""
    return torch.stack([reference.sum_second_moment(block, center=center) for block in rows])


def united(matrices: Tensor) -> Tensor:
    """Eigenvalues of all blocks, descending."""
    values = torch.cat([reference.eigenvalues(block) for block in matrices])
    return values.sort(descending=True).values


def weight_grad(inputs: Tensor, grads: Tensor) -> Tensor:
    """1/N Σ_n Σ_t g aᵀ of each group, [groups, d_out / groups, d_in]."""
    return torch.einsum("gnti,gntj->gij", grads, inputs) / inputs.shape[1]


def squared_singular_values(blocks: Sequence[Tensor] | Tensor) -> Tensor:
    values = torch.cat([torch.linalg.svdvals(block.detach()) ** 2 for block in blocks])
    return values.sort(descending=True).values


def close(given: Spectrum | None, expected: Tensor, relative: float = 1e-10) -> None:
    """Assert equal eigenvalues, up to a fraction of the largest (values below the floor are 0)."""
    assert given is not None
    assert given.eigenvalues.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(given.eigenvalues, expected, rtol=0, atol=relative * scale)


def kronecker_close(
    given: KroneckerSpectrum | None, a: Tensor, b: Tensor, relative: float = 1e-10
) -> None:
    """Assert the measures of A_g ⊗ B_g, formed densely."""
    assert given is not None
    blocks = [reference.kronecker_eigenvalues(x, y) for x, y in zip(a, b, strict=True)]
    values = torch.cat(blocks).sort(descending=True).values
    assert len(given) == len(values)
    assert abs(given.lambda_max / float(values[0]) - 1) < relative
    assert abs(given.trace / float(values.sum()) - 1) < relative


def same(given: Spectrum | None, expected: Spectrum | None, factor: float = 1.0) -> None:
    """Assert that one spectrum is another times a factor."""
    assert given is not None
    assert expected is not None
    close(given, expected.eigenvalues * factor)
