"""Samples: how many a model is called with, and which rows of a layer belong to which of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.errors import InputError


def count_samples(arguments: object) -> int:
    """Return N, the first dimension of the tensors a model is called with.

    Numbers and tensors of one element along it, such as the time of a differential equation, say
    nothing of N where others do.

    Args:
        arguments: Nested tuples, lists and mappings of anything.

    Returns:
        The number of samples.

    Raises:
        InputError: If there is no tensor with a dimension, or they differ in the first.
    """
    tensors = [tensor for tensor in tensors_in(arguments) if tensor.ndim > 0]
    if not tensors:
        raise InputError(
            "the model was called without a tensor [N, ...], so N is unknown: give the Recorder "
            "num_samples."
        )
    sizes = {len(tensor) for tensor in tensors}
    several = sizes - {1} or sizes
    if len(several) > 1:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise InputError(
            f"the model was called with tensors of shapes {shapes}, which differ in the first "
            "dimension, so the number N of samples is unknown: give the Recorder num_samples."
        )
    return several.pop()


def tensors_in(nested: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings, in their order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for part in nested.values():
            yield from tensors_in(part)
    elif isinstance(nested, tuple | list):
        for part in nested:
            yield from tensors_in(part)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a sample stand among those of a call: ``[outer, N, inner]``.

    Args:
        outer: Number of places that every sample has before the others follow; 1 where samples come
            first, T where positions do.
        inner: Number of rows of a sample that follow each other.
    """

    outer: int
    inner: int

    def by_sample(self, tensor: Tensor, num_samples: int) -> Tensor:
        """Return ``[rows, ...]`` as ``[N, T, ...]``, a view where samples come first."""
        rest = tensor.shape[1:]
        return (
            tensor
            .reshape(self.outer, num_samples, self.inner, *rest)
            .movedim(1, 0)
            .reshape(num_samples, self.outer * self.inner, *rest)
        )


@dataclass(frozen=True, eq=False)
class SampleTest:
    """A random half of the samples, which alone are back-propagated, to see where rows change.

    Args:
        chosen: Whether each sample is one of the half, ``[N]``.
        mixes: Whether samples mix as they should, in a batch normalisation's training mode.
    """

    chosen: Tensor
    mixes: bool

    @classmethod
    def of(cls, num_samples: int, *, mixes: bool) -> "SampleTest":
        """Return a test that is the same for the same number of samples."""
        generator = torch.Generator().manual_seed(num_samples)
        order = torch.randperm(num_samples, generator=generator)
        chosen = torch.zeros(num_samples, dtype=torch.bool)
        chosen[order[: max(1, num_samples // 2)]] = True
        return cls(chosen, mixes)

    def cotangents(self, outputs: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs that have samples, and random signs for the chosen ones' entries."""
        num_samples = len(self.chosen)
        generator = torch.Generator().manual_seed(0)
        roots, signs = [], []
        for output in outputs:
            if not output.requires_grad or output.ndim == 0 or len(output) % num_samples:
                continue
            drawn = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
            of_rows = self.chosen.repeat_interleave(len(output) // num_samples).to(output.device)
            roots.append(output)
            signs.append(drawn * of_rows.view(-1, *[1] * (output.ndim - 1)))
        return roots, signs

    def find_layout(self, grad: Tensor) -> Layout | None:
        """Return the layout under which the rows that got a gradient are the chosen samples'.

        Args:
            grad: Gradient ``[rows, ...]`` of the chosen samples' outputs.

        Returns:
            The layout, samples first where that is possible; None where there is none, or where
            samples mix and have several rows, so that nobody can tell.
        """
        num_samples, num_rows = len(self.chosen), len(grad)
        positions = num_rows // num_samples
        power = grad.detach().flatten(1).abs().amax(1).cpu().double().nan_to_num(0.0, 0.0, 0.0)
        if not power.any():
            return Layout(1, positions)
        for outer in (outer for outer in range(1, positions + 1) if positions % outer == 0):
            layout = Layout(outer, positions // outer)
            of_samples = layout.by_sample(power, num_samples).sum(1)
            if not of_samples[~self.chosen].any():
                return layout
        return Layout(1, 1) if self.mixes and positions == 1 else None
