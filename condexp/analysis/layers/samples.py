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


_FEW = 16  # samples, of which a half that is drawn may well be one that is mixed within itself


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

    @property
    def of_single_samples(self) -> "list[SampleTest]":
        """Tests of one sample each, where samples are few: half of them may be mixed alone."""
        num_samples = len(self.chosen)
        if not 2 < num_samples < _FEW:
            return []
        ones = torch.eye(num_samples, dtype=torch.bool)
        return [SampleTest(ones[n], self.mixes) for n in (0, num_samples // 2 - 1)]

    @property
    def complement(self) -> "SampleTest":
        """The test of the other samples."""
        return SampleTest(~self.chosen, self.mixes)


class Owners:
    """The layouts under which the rows of one use that got a gradient are the chosen samples'.

    Args:
        num_samples: N.
        num_rows: Number of rows, a multiple of N.
    """

    def __init__(self, num_samples: int, num_rows: int) -> None:
        positions = num_rows // num_samples
        outers = (outer for outer in range(1, positions + 1) if positions % outer == 0)
        self._fitting = [Layout(outer, positions // outer) for outer in outers]
        self._num_samples, self._num_tests = num_samples, 0
        self._with_gradient = torch.zeros(num_rows, dtype=torch.bool)

    def test(self, test: SampleTest, grad: Tensor) -> None:
        """Leave the layouts that fit one more test.

        Args:
            test: The test.
            grad: Gradient ``[rows, ...]`` of the chosen samples' outputs.
        """
        self._num_tests += 1
        power = grad.detach().flatten(1).abs().amax(1).cpu().double().nan_to_num(0.0, 0.0, 0.0)
        self._with_gradient |= power > 0
        alone = self._fitting == [Layout(1, 1)] and test.mixes
        if not alone:  # one row a sample, where statistics mix the others in
            self._fitting = [
                layout
                for layout in self._fitting
                if not layout.by_sample(power, self._num_samples).sum(1)[~test.chosen].any()
            ]

    @property
    def is_settled(self) -> bool:
        """Whether a further test can tell no more."""
        return len(self._fitting) < 2

    @property
    def layout(self) -> Layout | None:
        """The layout, samples first where that is possible; None where none fits, or several.

        Without a test samples are taken to come first. Those that fit must differ in rows that got
        a gradient, of all samples, to matter.
        """
        if self._num_tests == 0 or self.is_settled:
            return next(iter(self._fitting), None)
        rows = self._with_gradient.nonzero()[:, 0]
        owners = [rows // layout.inner % self._num_samples for layout in self._fitting]
        same = all(torch.equal(owners[0], other) for other in owners[1:])
        return self._fitting[0] if same and self._num_tests > 1 else None
