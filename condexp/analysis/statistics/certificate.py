"""The gradient certificate: whether recorded rows reproduce the gradient of their weight."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from condexp.analysis.layers.rows import Operation, weight_blocks
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.linalg.precision import coarser, exact_products

_TOLERANCE = 8.0  # times √eps, relative to the gradient
_ROUNDING = 32.0  # times eps, relative to the rows' norms: sums of products that may cancel
_TF32 = 2.0**-10


@dataclass(eq=False)
class GradientCertificate:
    """A check of Σ_{n,t} g aᵀ = ∂L/∂W for one weight (``docs/theory.md`` §7).

    With fixed random signs v, Σ g (aᵀv) of all recorded rows is compared with (∂L/∂W) v, entry by
    entry: two products of a matrix and a vector. It fails where a use of the weight was missed
    (``x @ W.T``, a fused path), counted twice or scaled, or where the rows are another layer's. The
    signs of a convolution's patch are those of its channel times those of its place, so that
    channels are summed before patches are.

    Args:
        of_rows: Sum Σ g (aᵀv) so far, ``[d_out]``; None before the first.
        of_weight: Sum of (∂L/∂W) v so far, ``[d_out]``; None before the first.
        power: Sum of ‖∂L/∂W‖².
        rounding: Sum of ‖aᵀv‖·‖g‖, in proportion to which both sums are rounded.
        smallest: Bound on what flushed and denormal numbers of the gradient may hide.
        dtype: The coarsest precision in which rows and gradients were computed.
        on_cuda: Whether they were computed on a GPU, whose products may be TF32.
    """

    of_rows: Tensor | None = None
    of_weight: Tensor | None = None
    power: Tensor | float = 0.0
    rounding: Tensor | float = 0.0
    smallest: float = 0.0
    dtype: torch.dtype = torch.float64
    on_cuda: bool = False

    def project(self, operation: Operation, inputs: Tensor) -> Tensor:
        """Return aᵀv of all rows a.

        Args:
            operation: What is computed of the input.
            inputs: The input, at least float32.

        Returns:
            ``[rows]`` of a linear map, ``[N, groups, T]`` of a convolution.
        """
        window = operation.window
        if operation.num_entries:
            entries = inputs.flatten().long()
            signs = _signs(operation.num_entries, torch.float32, inputs.device)
            return torch.where(entries < 0, 0.0, signs[entries])
        with exact_products(inputs.device):
            if window is None:
                rows = inputs.reshape(-1, inputs.shape[-1])
                return rows @ _signs(inputs.shape[-1], inputs.dtype, inputs.device)
            num_samples, _, height, width = inputs.shape
            kernel = _signs(math.prod(window.kernel_size), inputs.dtype, inputs.device)
            summed = self._sum_channels(inputs, window.groups)
            found = F.conv2d(
                window.pad(summed.reshape(-1, 1, height, width)),
                kernel.view(1, 1, *window.kernel_size),
                stride=tuple(window.stride),
                dilation=tuple(window.dilation),
            )
            return found.reshape(num_samples, window.groups, -1)

    def _sum_channels(self, images: Tensor, groups: int) -> Tensor:
        """Return Σ_c v_c x_c, ``[N, groups, H, W]``."""
        num_samples, channels, height, width = images.shape
        signs = _signs(channels // groups, images.dtype, images.device)
        if groups == 1 and images.is_contiguous(memory_format=torch.channels_last):
            return (images.movedim(1, -1) @ signs)[:, None]
        blocks = images.reshape(num_samples * groups, channels // groups, height * width)
        return (signs @ blocks).view(num_samples, groups, height, width)

    def add_rows(
        self,
        operation: Operation,
        projected: Tensor,
        grad: Tensor,
        norm: Tensor,
        dtype: torch.dtype,
    ) -> None:
        """Add the rows of one use.

        Args:
            operation: What was computed.
            projected: Result of :meth:`project`.
            grad: Gradient ∂L/∂h of the output, not scaled, at least float32.
            norm: Its Frobenius norm.
            dtype: Precision in which it was computed.
        """
        self._note(dtype, grad)
        projected = projected.to(grad.dtype)
        with exact_products(grad.device):
            if operation.window is None:
                found = projected.reshape(-1) @ grad.reshape(-1, grad.shape[-1])
            else:
                num_samples, groups, positions = projected.shape
                blocks = grad.reshape(num_samples, groups, -1, positions)
                found = (blocks @ projected[..., None]).sum(0).flatten()
        self.of_rows = _sum(self.of_rows, found)
        self.rounding = self.rounding + _at_hand(frobenius_norm(projected)) * _at_hand(norm)

    def add_gradient(self, groups: int, grad: Tensor, norm: Tensor, dtype: torch.dtype) -> None:
        """Add a gradient of the weight.

        Args:
            groups: Number of the layer's blocks.
            grad: Gradient ∂L/∂W, at least float32.
            norm: Its Frobenius norm.
            dtype: Precision in which it was computed.
        """
        self._note(dtype, grad)
        self.of_weight = _sum(self.of_weight, _along_signs(groups, grad))
        self.power = self.power + _at_hand(norm) ** 2
        info = torch.finfo(dtype)
        self.smallest += info.smallest_normal * info.eps * math.sqrt(grad.numel())

    def add_formed(self, groups: int, formed: Tensor, rounding: float, dtype: torch.dtype) -> None:
        """Add what the rows of one use contribute to the gradient, where that has been formed.

        Args:
            groups: Number of the layer's blocks.
            formed: Σ g aᵀ, of the shape of the gradient in :meth:`add_gradient`.
            rounding: ‖a‖·‖g‖ of all rows.
            dtype: Precision in which the gradient of the output was computed.
        """
        self._note(dtype, formed)
        self.of_rows = _sum(self.of_rows, _along_signs(groups, formed))
        self.rounding = self.rounding + rounding

    def merge(self, other: "GradientCertificate") -> None:
        """Add the sums of another process, of the same weight.

        Args:
            other: Sums of the other's passes.
        """
        if other.of_rows is not None:
            self.of_rows = _sum(self.of_rows, other.of_rows)
        if other.of_weight is not None:
            self.of_weight = _sum(self.of_weight, other.of_weight)
        self.power = float(self.power) + float(other.power)
        self.rounding = float(self.rounding) + float(other.rounding)
        self.smallest += other.smallest
        self.dtype = coarser(self.dtype, other.dtype)
        self.on_cuda = self.on_cuda or other.on_cuda

    def check(self) -> tuple[float, bool]:
        """Compare both sums.

        Returns:
            ‖Σ g (aᵀv) − (∂L/∂W) v‖ / ‖∂L/∂W‖_F, NaN where no gradient arrived or it was 0; and
            whether that is more than rounding explains.
        """
        if self.of_weight is None:
            return math.nan, False
        difference, power = self._difference(), float(self.power)
        residual = difference / math.sqrt(power) if power > 0 else math.nan
        if not math.isfinite(power):
            return residual, False
        eps = torch.finfo(self.dtype).eps
        if self.on_cuda and self.dtype == torch.float32:
            eps = _TF32
        allowed = _TOLERANCE * math.sqrt(eps * power) + _ROUNDING * eps * float(self.rounding)
        return residual, difference > allowed + self.smallest

    def _note(self, dtype: torch.dtype, grad: Tensor) -> None:
        if dtype != self.dtype:
            self.dtype = coarser(self.dtype, dtype)
        self.on_cuda = self.on_cuda or grad.is_cuda

    def _difference(self) -> float:
        assert self.of_weight is not None
        missing = self.of_weight.double()
        if self.of_rows is not None:
            missing = missing - self.of_rows
        return float(torch.linalg.vector_norm(missing))


def _along_signs(groups: int, grad: Tensor) -> Tensor:
    """Return (∂L/∂W) v, ``[d_out]``."""
    blocks = weight_blocks(groups, grad)
    kernel = grad[0, 0].numel() if grad.ndim > 2 else 1
    signs = _signs(blocks.shape[2] // kernel, grad.dtype, grad.device)
    if grad.ndim > 2:
        signs = torch.outer(signs, _signs(kernel, grad.dtype, grad.device)).flatten()
    with exact_products(grad.device):
        return (blocks @ signs).flatten()


@lru_cache(maxsize=256)
def _signs(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    drawn = torch.randint(2, (size,), generator=generator, device="cpu") * 2 - 1
    return drawn.to(dtype=dtype, device=device)


def _sum(mine: Tensor | None, other: Tensor) -> Tensor:
    return other if mine is None else mine.double() + other.to(mine.device)


def _at_hand(norm: Tensor) -> Tensor | float:
    """Return a number that can be calculated with at once; to read it from a GPU would wait."""
    return norm if norm.is_cuda else float(norm)
