"""A network in float64, for a pass that looks at the function without its rounding.

Parameters and buffers are exchanged in the modules themselves: a copy of the modules would miss
what their functions hold on to (a replaced ``forward``, a process group, a tensor with a graph).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from condexp.analysis.model_state import Step, preserved_state, steps_on_the_way_out
from condexp.errors import InputError

_AS_TRAINED = "use network_precision='as_trained'"
_ADVICE = (
    "network_precision='float64' converts parameters, buffers, inputs and targets; tensors that "
    "the model or the loss keeps elsewhere stay as they are: register them as buffers, or "
    f"{_AS_TRAINED}."
)
_DRAWN_IN_PLACE = {
    "aten::bernoulli_",
    "aten::cauchy_",
    "aten::exponential_",
    "aten::geometric_",
    "aten::log_normal_",
    "aten::normal_",
    "aten::random_",
    "aten::uniform_",
}
_DRAWN = {
    "aten::bernoulli",
    "aten::multinomial",
    "aten::rand",
    "aten::rand_like",
    "aten::randn",
    "aten::randn_like",
}
_VALUELESS = ("empty", "new_", "zeros", "ones", "full")


@contextmanager
def float64_network(model: nn.Module, loss_fn: object) -> Iterator[None]:
    """Exchange parameters and buffers for float64 copies, and draw as the network draws.

    The user's own tensors are not written to, nor do their hooks and gradients see a pass. What is
    drawn at random inside is drawn in the precision of the weights and converted.

    Args:
        model: The network.
        loss_fn: The loss; of a module, the buffers are exchanged too.

    Yields:
        Nothing; every pass inside needs :func:`widened` inputs and targets.

    Raises:
        InputError: If the network is on a device without float64.
        RuntimeError: What torch raises inside, with a note on what is converted.
    """
    modules = [m for m in (model, loss_fn) if isinstance(m, nn.Module)]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    if any(tensor.device.type == "mps" for tensor in tensors):
        raise InputError(
            "network_precision='float64': Apple's MPS has no float64; move the model to the CPU, "
            f"or {_AS_TRAINED}."
        )
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float64}
    copies: dict[int, Tensor] = {}
    steps = [step for module in modules for step in _steps(module)]
    devices = {tensor.device.type for tensor in tensors} or {"cpu"}
    with steps_on_the_way_out(steps), ExitStack() as stack:
        for module in modules:
            _exchange(module, copies)
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        if dtypes:
            stack.enter_context(_NoFusedDropout())
            stack.enter_context(_Draws(dtypes))
        try:
            yield
        except RuntimeError as error:
            error.add_note(_ADVICE)
            raise


def widened(value: Any) -> Any:
    """Return a batch's tensors in float64 where they are of a floating type.

    Args:
        value: A tensor, or tuples, lists and mappings of them; all else is returned as it is.
    """
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(widened, value))
    if isinstance(value, tuple | list):
        return type(value)(map(widened, value))
    if isinstance(value, Mapping):
        return {key: widened(part) for key, part in value.items()}
    return value


def refuse_rounding(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a network that goes back to less than float64 on its way, in a pass of its own.

    Args:
        model: The network, inside :func:`float64_network`.
        inputs: A batch, widened.

    Raises:
        InputError: If some operation makes coarser numbers of float64 ones.
    """
    watch = _NoRounding()  # type: ignore[no-untyped-call]
    with preserved_state(model), torch.no_grad(), watch:
        model(inputs.clone())


def _steps(module: nn.Module) -> Iterator[Step]:
    for name, part in module.named_modules():
        of = f"of module {name!r}" if name else "of the model"
        attributes = dict(vars(part))
        yield Step(f"attributes {of}", partial(_put_back_attributes, part, attributes))
        for key, parameter in part._parameters.items():
            # By setattr: recurrent layers keep a list besides, which is back by now.
            yield Step(f"parameter {key} {of}", partial(setattr, part, key, parameter))
        for key, buffer in part._buffers.items():
            yield Step(f"buffer {key} {of}", partial(part._buffers.__setitem__, key, buffer))


def _put_back_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Put back what a module keeps beside parameters and buffers: it may be of float64 now."""
    kept = vars(module)
    for name in set(kept) - set(attributes):
        del kept[name]
    for name, value in attributes.items():
        if kept.get(name) is not value:
            kept[name] = value


def _exchange(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Exchange a module's tensors; those that are shared stay shared.

    Args:
        module: The module.
        copies: Float64 tensor by the identity of the tensor that it replaces.
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and _is_narrow(parameter):
                if id(parameter) not in copies:
                    copy = parameter.detach().double()
                    copies[id(parameter)] = nn.Parameter(copy, parameter.requires_grad)
                setattr(part, name, copies[id(parameter)])
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and _is_narrow(buffer):
                part._buffers[name] = copies.setdefault(id(buffer), buffer.detach().double())


def _is_narrow(value: object) -> bool:
    """Return whether something is a floating tensor of less than float64."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.dtype != torch.float64


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random numbers of float64 are drawn as numbers of the trained type, and converted.

    Generators give other numbers for other types: float64 takes more bits of a state.

    Args:
        dtypes: The types of the weights, as trained.
    """

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtypes = dtypes

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        given = [*args, *kwargs.values()]
        draws_nothing = _probability(function, args, kwargs) == 0
        if draws_nothing or not any(_is_double(value) for value in given):
            return function(*args, **kwargs)
        return self._draw(function, args, kwargs)

    def _draw(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if len(self._dtypes) > 1:
            raise InputError(
                "network_precision='float64': the model draws random numbers, and its weights are "
                f"of several types ({', '.join(sorted(map(str, self._dtypes)))}): of which the "
                f"draws are cannot be told; measure in eval mode, or {_AS_TRAINED}."
            )
        (dtype,) = self._dtypes
        name = function._schema.name

        def narrowed(value: Any) -> Any:
            if not _is_double(value):
                return value
            return value.to(dtype) if isinstance(value, Tensor) else dtype

        others = [narrowed(value) for value in args[1:]]
        named = {key: narrowed(value) for key, value in kwargs.items()}
        if name in _DRAWN_IN_PLACE:
            target = args[0]
            drawn = torch.empty_strided(
                target.size(), target.stride(), dtype=dtype, device=target.device
            )
            return target.copy_(function(drawn, *others, **named))
        if name == "aten::native_dropout":
            probability = args[1]
            _, mask = function(narrowed(args[0]), *others, **named)
            kept = 0.0 if probability == 1 else 1 / (1 - probability)
            return args[0] * mask * kept, mask
        if name in _DRAWN:
            drawn = function(*[narrowed(value) for value in args], **named)
            return drawn.double() if drawn.is_floating_point() else drawn
        raise InputError(
            f"network_precision='float64': the model draws random numbers by {name}, which draws "
            f"others in float64 than in {dtype}; measure in eval mode, or {_AS_TRAINED}."
        )


def _probability(function: Any, args: Any, kwargs: dict[str, Any]) -> float | None:
    """Return the dropout of fused attention; None of any other operation."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else kwargs.get("dropout_p")
            return float(argument.default_value if given is None else given)
    return None


class _NoFusedDropout(TorchFunctionMode):
    """Refuses attention whose kernel draws its own dropout: that of float64 is another kernel."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            dropout = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
            query = args[0] if args else kwargs["query"]
            if dropout > 0 and query.device.type != "cpu":
                raise InputError(
                    "network_precision='float64': scaled_dot_product_attention draws its dropout "
                    f"in a fused kernel on {query.device.type}, which has no float64; measure in "
                    f"eval mode, or {_AS_TRAINED}."
                )
        return function(*args, **kwargs)


class _NoRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that make coarser floating numbers of float64 ones."""

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if (
            any(map(_is_narrow, _flat(result)))
            and any(isinstance(value, Tensor) and _is_double(value) for value in _flat(args))
            and not name.removeprefix("aten::").startswith(_VALUELESS)
        ):
            coarse = next(value.dtype for value in _flat(result) if _is_narrow(value))
            raise InputError(
                f"network_precision='float64': the model itself rounds to {coarse} on its way "
                f"({name}: a .float() or .to() in its forward?), so that its pass would not be in "
                f"float64; {_AS_TRAINED}."
            )
        return result


def _is_double(value: object) -> bool:
    return value is torch.float64 or (isinstance(value, Tensor) and value.dtype == torch.float64)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [part for several in value for part in _flat(several)]
    return [value]
