"""Uses of weights: all calls of linear maps and convolutions while watched, whoever calls."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from condexp.analysis.layers.embeddings import watched_embedding
from condexp.analysis.layers.kinds import (
    Layer,
    in_plane,
    pixels,
    planar_window,
    spread,
    transposed_window,
)
from condexp.analysis.layers.normalisations import KINDS, watched_normalisation
from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.use import Listener, WeightUse, gradient_source
from condexp.analysis.linalg.rows.patches import Window
from condexp.errors import InputError


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


class _Watch:
    """Layers whose uses one listener is told of."""

    def __init__(self, layers: Mapping[str, Layer], listener: Listener) -> None:
        kinds = ((name, kind) for name, layer in layers.items() for kind in layer.kinds)
        self.names = {(id(kind.weight), kind.function): name for name, kind in kinds}
        self.listener = listener


_watches: list[_Watch] = []
_originals: dict[tuple[Any, str], Any] = {}
_COMPILER = "torch._dynamo.trace_rules"


@contextmanager
def watched(layers: Mapping[str, Layer], listener: Listener) -> Iterator[None]:
    """Tell a listener of every use of some weights inside, also of those outside their modules.

    Modules, attention and most users call functions of ``torch.nn.functional`` and ``torch`` by
    their names, which are replaced meanwhile; what is computed stays the same, bit for bit. What is
    multiplied otherwise (``x @ W.T``, compiled or scripted code) is not seen: the graph of the
    output, and a gradient that no recorded row explains, tell of it.

    Args:
        layers: The layers, by name, of different weights.
        listener: Called after a use with its name, itself, and its :func:`gradient_source`.

    Yields:
        Nothing.
    """
    watch = _Watch(layers, listener)
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
    replacements: dict[tuple[Any, str], Callable[[Callable[..., Tensor]], Any]] = {
        (F, "linear"): _watched_linear,
        (torch, "addmm"): _watched_addmm,
        (torch, "embedding"): partial(watched_embedding, _listeners),
    }
    for owner, dims in product((F, torch), (1, 2, 3)):
        replacements[owner, f"conv{dims}d"] = partial(_watched_convolution, dims)
        replacements[owner, f"conv_transpose{dims}d"] = partial(_watched_transposed, dims)
    for name in KINDS:
        if hasattr(F, name):
            replacements[F, name] = partial(watched_normalisation, name, _listeners)
    for owner, name in replacements:
        _originals[owner, name] = getattr(owner, name)
    for (owner, name), make in replacements.items():
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
        base = weight._base
        whole, rows = weight, slice(0, len(weight) if weight.ndim == 2 else 0)
        if base is not None and (part := _rows_of(weight, base)) is not None:
            whole, rows = base, part
        if listeners := _listeners(whole, "linear"):
            shape = full = output.shape
            lay_out: Callable[[Tensor], Tensor] = partial(torch.reshape, shape=shape)
            if whole is not weight:  # the other outputs, and their gradients, are 0
                around = (rows.start, len(whole) - rows.stop)
                lay_out = partial(_among_zeros, shape=shape, around=around)
                full = torch.Size((*shape[:-1], len(whole)))
            use = _linear_use("linear", input, bias, output, full, lay_out)
            for tell in listeners:
                tell(use, gradient_source(output))
        return output

    return linear


def _among_zeros(grad: Tensor, shape: torch.Size, around: tuple[int, int]) -> Tensor:
    return F.pad(grad.reshape(shape), around)


def _rows_of(weight: Tensor, base: Tensor) -> slice | None:
    """Return the rows of a matrix that a view of it consists of; None where it is another part."""
    if weight.ndim != 2 or base.ndim != 2 or weight.shape[1] != base.shape[1]:
        return None
    if weight.stride() != base.stride() or base.shape[1] == 0:
        return None
    offset = int(weight.storage_offset()) - int(base.storage_offset())
    first, rest = divmod(offset, base.stride(0) or 1)
    return None if rest else slice(first, first + len(weight))


def _watched_addmm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def addmm(*args: Any, **kwargs: Any) -> Tensor:
        output = original(*args, **kwargs)
        if len(args) == 3 and not kwargs:
            bias, inputs, weight = args
            for tell in _listeners(weight, "addmm"):
                lay_out = partial(torch.reshape, shape=output.shape)
                use = _linear_use("addmm", inputs, bias, output, output.shape, lay_out)
                tell(use, gradient_source(output))
        return output

    return addmm


def _linear_use(
    function: str,
    inputs: Tensor,
    bias: Tensor | None,
    output: Tensor,
    shape: torch.Size,
    lay_out: Callable[[Tensor], Tensor],
) -> WeightUse:
    operation = Operation(None, bias is not None, function=function)
    return WeightUse(operation, inputs, inputs, inputs, shape, output.dtype, lay_out)


def _watched_convolution(dims: int, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def convolution(
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        output = original(input, weight, bias, stride, padding, dilation, groups)
        function = f"conv{dims}d"
        for tell in _listeners(weight, function):
            _refuse_without_batch(input, dims)
            kernel = weight.shape[2:]
            window = planar_window(kernel, stride, padding, dilation, groups)
            with torch.no_grad():
                inputs = input
                if dims != 2:
                    inputs = in_plane(input.detach(), kernel, stride, padding, dilation)
            use = _convolution_use(function, window, input, inputs, bias, output)
            tell(use, gradient_source(output))
        return output

    return convolution


def _watched_transposed(dims: int, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def transposed(
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        rest = (stride, padding, output_padding, groups, dilation)
        output = original(input, weight, bias, *rest)
        function = f"conv_transpose{dims}d"
        for tell in _listeners(weight, function):
            _refuse_without_batch(input, dims)
            kernel = weight.shape[2:]
            with torch.no_grad():
                wide = spread(input.detach(), kernel, stride, padding, output_padding, dilation)
                inputs = in_plane(wide, kernel, 1, 0, dilation)
            window = transposed_window(kernel, dilation, groups)
            use = _convolution_use(function, window, input, inputs, bias, output)
            tell(use, gradient_source(output))
        return output

    return transposed


def _refuse_without_batch(inputs: Tensor, dims: int) -> None:
    if inputs.ndim != dims + 2:
        raise InputError(
            f"a Conv{dims}d was called on an input of shape {tuple(inputs.shape)}: its analysis "
            "needs a batch, [N, C, ...]; add the batch dimension."
        )


def _convolution_use(
    function: str,
    window: Window,
    given: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    output: Tensor,
) -> WeightUse:
    shape = output.shape
    lay_out: Callable[[Tensor], Tensor] = partial(torch.reshape, shape=shape)
    plane = shape
    if len(shape) == 3:
        plane = torch.Size((*shape[:2], 1, shape[2]))
        lay_out = partial(torch.reshape, shape=plane)
    elif len(shape) == 5:
        plane = torch.Size((shape[0] * shape[2], shape[1], *shape[3:]))
        lay_out = partial(_in_depth, shape=shape)
    operation = Operation(window, bias is not None, function=function)
    images = inputs if inputs is given else pixels(given.detach())
    return WeightUse(operation, given, inputs, images, plane, output.dtype, lay_out)


def _in_depth(grad: Tensor, shape: torch.Size) -> Tensor:
    return grad.reshape(shape).movedim(2, 1).flatten(0, 1)


def _listeners(weight: Tensor, function: str) -> list[Callable[[WeightUse, Tensor], None]]:
    key = id(weight), function
    return [partial(w.listener, w.names[key]) for w in _watches if key in w.names]
