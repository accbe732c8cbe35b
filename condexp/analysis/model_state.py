"""The state of a model and all random generators, which an analysis leaves exactly as found."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """One thing to put back, whatever becomes of the others."""

    what: str
    put_back: Callable[[], object]


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Restore a model and all random states on the way out, also after an exception.

    Restored bit for bit: training modes, buffers (values, shape, type and identity; those that were
    registered or deleted), ``.grad`` (set aside meanwhile, so nothing accumulates into it) and the
    random states of torch (CPU, CUDA and MPS), Python and NumPy; and the weights of embeddings that
    shorten what is looked up (``max_norm``).

    What cannot be restored does not keep the rest from it. The first such error is raised at the
    end; where another exception is under way, it becomes a note of that.

    Args:
        model: The network; its other weights must not be changed inside.

    Yields:
        Nothing; the body may run passes in any mode.
    """
    steps = [*_of_modules(model), *_of_buffers(model), *_of_gradients(model), *_of_generators()]
    steps += _of_shortened_weights(model)
    with steps_on_the_way_out(steps):
        for parameter in model.parameters():
            parameter.grad = None
        yield


@contextmanager
def steps_on_the_way_out(steps: list[Step]) -> Iterator[None]:
    """Take steps on the way out, also after an exception, whatever becomes of each.

    Args:
        steps: The steps, in order.

    Yields:
        Nothing.

    Raises:
        BaseException: The first that a step raised, with notes on all that could not be restored;
            where another exception is under way, that gets the notes.
    """
    under_way: BaseException | None = None
    try:
        yield
    except BaseException as error:
        under_way = error
        raise
    finally:
        _put_back(steps, under_way)


def _put_back(steps: list[Step], under_way: BaseException | None) -> None:
    """Take all steps; see :func:`steps_on_the_way_out`."""
    first: BaseException | None = None
    notes = []
    for what, put_back in steps:
        try:
            put_back()
        except BaseException as error:
            first = first or error
            notes.append(f"{what} could not be restored: {type(error).__name__}: {error}")
    if first is None:
        return
    # The exception under way stays what is seen, unless somebody wants the process to end.
    noted = first if under_way is None or not isinstance(first, Exception) else under_way
    for note in notes:
        noted.add_note(note)
    if noted is first:
        raise first


def _of_modules(model: nn.Module) -> Iterator[Step]:
    for name, module in model.named_modules():
        of = f"of module {name!r}" if name else "of the model"
        yield Step(f"mode {of}", partial(setattr, module, "training", module.training))
        buffers, transient = dict(module._buffers), set(module._non_persistent_buffers_set)
        yield Step(f"list of buffers {of}", partial(_register, module, buffers, transient))


def _register(module: nn.Module, buffers: dict[str, Tensor | None], transient: set[str]) -> None:
    """Register a module's buffers, and no others, whatever has taken their names."""
    for name in buffers:
        for others in (vars(module), module._parameters, module._modules):
            others.pop(name, None)
    module._buffers.clear()
    module._buffers.update(buffers)
    module._non_persistent_buffers_set.clear()
    module._non_persistent_buffers_set.update(transient)


def _of_buffers(model: nn.Module) -> Iterator[Step]:
    for name, buffer in model.named_buffers():
        if not buffer.is_meta:  # meta tensors hold no values
            values = buffer.detach(), buffer.detach().clone()
            yield Step(f"buffer {name!r}", partial(_write, buffer, *values))


def _of_shortened_weights(model: nn.Module) -> Iterator[Step]:
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if getattr(module, "max_norm", None) is not None and isinstance(weight, nn.Parameter):
            values = weight.detach(), weight.detach().clone()
            yield Step(f"weight of {name!r}", partial(_write, weight, *values))


def _write(buffer: Tensor, alias: Tensor, value: Tensor) -> None:
    """Write a buffer back only where it changed: a graph of the user's may still hold it.

    Args:
        buffer: The buffer.
        alias: A tensor that shares its memory, as the buffer was.
        value: A copy of its values.
    """
    with torch.no_grad():
        if not _is_like(buffer, alias):
            buffer.data = alias
        if not torch.equal(buffer, value):
            buffer.copy_(value)


def _is_like(buffer: Tensor, alias: Tensor) -> bool:
    """Return whether a buffer lies where it lay, with the shape and type that it had."""
    kinds = [(t.shape, t.dtype, t.device, t.layout) for t in (buffer, alias)]
    if kinds[0] != kinds[1] or buffer.layout != torch.strided or type(buffer) is not Tensor:
        return kinds[0] == kinds[1]
    places = [(t.data_ptr(), t.stride()) for t in (buffer, alias)]
    return places[0] == places[1]


def _of_gradients(model: nn.Module) -> Iterator[Step]:
    for name, parameter in model.named_parameters():
        yield Step(f"gradient of {name!r}", partial(setattr, parameter, "grad", parameter.grad))


def _of_generators() -> Iterator[Step]:
    state = torch.get_rng_state()
    yield Step("random state of torch", partial(torch.set_rng_state, state))
    yield Step("random state of Python", partial(random.setstate, random.getstate()))
    yield Step("random state of NumPy", partial(np.random.set_state, np.random.get_state()))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states = torch.cuda.get_rng_state_all()
        yield Step("random states of CUDA", partial(torch.cuda.set_rng_state_all, states))
    if torch.backends.mps.is_available():
        of_mps = torch.mps.get_rng_state()
        yield Step("random state of MPS", partial(torch.mps.set_rng_state, of_mps))
