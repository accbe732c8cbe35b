"""The user's own network: a class or function of any module that can be imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from condexp.errors import InputError
from condexp.models.spec import ModelSpec
from condexp.models.user_code import call_target

EXAMPLE = "my_models:Net for the class Net in my_models.py"


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/import.yaml``."""

    target: str
    kwargs: dict[str, Any]

    @property
    def title(self) -> str:
        """The class or function."""
        return f"{self.name} {self.target}"


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Call the user's class or function.

    It is given ``kwargs``, and besides them ``input_shape`` and ``num_outputs`` as far as its
    signature names them. Its weights stay as it draws them.

    Args:
        spec: The keys. The current folder is searched first for ``target``; ``kwargs`` win over the
            other two.
        input_shape: Shape of one sample, (d,) or (C, H, W).
        num_outputs: Outputs of the last layer.

    Returns:
        What it returned.

    Raises:
        InputError: If there is no such module or name, it does not take the arguments, or what it
            returns is no ``torch.nn.Module``.
    """
    offered = {"input_shape": tuple(input_shape), "num_outputs": num_outputs}
    model = call_target("model", spec.target, spec.kwargs, offered, EXAMPLE)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model.target={spec.target!r} gives {type(model).__name__!r}: give a subclass of "
            "torch.nn.Module, or a function that returns a module."
        )
    return model
