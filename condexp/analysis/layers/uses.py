"""Uses of weights: all calls of ``linear`` and ``conv2d`` while they are watched, whoever calls."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from condexp.analysis.layers.rows import Operation
from condexp.analysis.linalg.rows.patches import Window


@dataclass(frozen=True, eq=False)
class WeightUse:
    """One multiplication of an input with a weight.

    Args:
        operation: What is computed of the two.
        inputs: The input, as it was given.
        output_shape: Shape of the output.
        dtype: Precision in which it was computed: under autocast, that one's.
    """

    operation: Operation
    inputs: Tensor
    output_shape: torch.Size
    dtype: torch.dtype

    @property
    def num_rows(self) -> int:
        """Number of rows of a linear map, of windows of a convolution."""
        shape = self.output_shape
        channels = -1 if self.operation.window is None else 1
        return shape.numel() // shape[channels] if shape.numel() else 0


def has_reentrant_checkpoint(output: Tensor) -> bool:
    """Return whether the graph of an output has a re-entrant activation checkpoint in it."""
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False


def uses_in_graph(output: Tensor, weights: Mapping[str, Tensor]) -> Counter[str]:
    """Count the edges of an output's graph that lead to weights: at most one for each use.

    Args:
        output: The output, with a graph.
        weights: The weights that require gradients, by name.

    Returns:
        The number of edges for each name; there is none of what a re-entrant activation checkpoint
        hides, and one for several uses of one cast or transposed copy.
    """
    names = {get_gradient_edge(weight).node: name for name, weight in weights.items()}
    found: Counter[str] = Counter()
    seen: set[Any] = {output.grad_fn}
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        for parent, _ in waiting.pop().next_functions:
            if parent in names:
                found[names[parent]] += 1
            elif parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return found


Listener = Callable[[str, WeightUse, Tensor], None]


def gradient_source(output: Tensor) -> Tensor:
    """Return a tensor whose gradient is that of an output, and which nobody takes out of the graph.

    An output of more than two dimensions may be a view of the product, and an operation in place
    gives a view another history: a hook on it would never be called.
    """
    base = output._base
    return base if base is not None and base.numel() == output.numel() else output


class _Watch:
    """Weights whose uses one listener is told of."""

    def __init__(self, weights: Mapping[str, Tensor], listener: Listener) -> None:
        self.names = {id(weight): name for name, weight in weights.items()}
        self.listener = listener


_watches: list[_Watch] = []
_PATCHED = ((F, "linear"), (F, "conv2d"), (torch, "conv2d"))
_originals: dict[tuple[Any, str], Any] = {}
_COMPILER = "torch._dynamo.trace_rules"


@contextmanager
def watched(weights: Mapping[str, Tensor], listener: Listener) -> Iterator[None]:
    """Tell a listener of every use of some weights inside, also of those outside their modules.

    Modules, attention and most users call ``torch.nn.functional.linear`` and ``conv2d`` by these
    names, which are replaced meanwhile; what is computed stays the same, bit for bit. What is
    multiplied otherwise (``x @ W.T``, compiled or scripted code) is not seen: a gradient that no
    recorded row explains tells of it.

    Args:
        weights: The weights, by name, each once.
        listener: Called after a use with its name, itself, and its :func:`gradient_source`.

    Yields:
        Nothing.
    """
    watch = _Watch(weights, listener)
    if not _watches:
        _replace_functions()
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)
        if not _watches:
            _restore_functions()


def _replace_functions() -> None:
    for owner, name in _PATCHED:
        _originals[owner, name] = getattr(owner, name)
    for owner, name in _PATCHED:
        make = _watched_linear if name == "linear" else _watched_conv2d
        setattr(owner, name, make(_originals[owner, name]))


def _restore_functions() -> None:
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()
    if (rules := sys.modules.get(_COMPILER)) is not None:
        rules.clear_lru_cache()  # it knows torch's functions by name, and may know the replacements


def _watched_linear(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        output = original(input, weight, bias)
        _tell(weight, None, bias, input, output)
        return output

    return linear


def _watched_conv2d(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def conv2d(
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        output = original(input, weight, bias, stride, padding, dilation, groups)
        _tell(weight, (stride, padding, dilation, groups), bias, input, output)
        return output

    return conv2d


def _tell(
    weight: Tensor,
    geometry: tuple[Any, Any, Any, int] | None,
    bias: Tensor | None,
    inputs: Tensor,
    output: Tensor,
) -> None:
    key = id(weight)
    told = [watch for watch in _watches if key in watch.names]
    if not told:
        return
    window = None
    if geometry is not None:
        stride, padding, dilation, groups = geometry
        window = Window(
            kernel_size=(weight.shape[2], weight.shape[3]),
            stride=_pair(stride),
            padding=padding if isinstance(padding, str) else _pair(padding),
            dilation=_pair(dilation),
            groups=groups,
        )
    use = WeightUse(Operation(window, bias is not None), inputs, output.shape, output.dtype)
    source = gradient_source(output)
    for watch in told:
        watch.listener(watch.names[key], use, source)


def _pair(value: Any) -> tuple[int, int]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return (numbers * 2)[:2] if len(numbers) == 1 else (numbers[0], numbers[1])
