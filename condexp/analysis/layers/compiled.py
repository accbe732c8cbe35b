"""Parts of a model that ``torch.compile`` has compiled, whose calls cannot be watched."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from condexp.errors import InputError


def compiled_parts(model: nn.Module) -> list[str]:
    """Return the names of the modules whose calls are compiled."""
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    ]


def without_compiler(model: nn.Module) -> nn.Module:
    """Return the module that was compiled as a whole; every other model as it is."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model


@contextmanager
def run_uncompiled(model: nn.Module) -> Iterator[None]:
    """Run the compiled parts of a model as they were before they were compiled.

    Args:
        model: The network.

    Yields:
        Nothing.

    Raises:
        InputError: If this version of torch cannot do that.
    """
    parts = compiled_parts(model)
    if not parts:
        yield
        return
    set_stance = getattr(torch.compiler, "set_stance", None)  # PyTorch ≥ 2.6
    if set_stance is None:
        raise InputError(
            f"{', '.join(parts)}: compiled by torch.compile, whose code does not call what is "
            "watched: analyse the modules before they are compiled."
        )
    with set_stance("force_eager"):
        yield
