"""The user's own network: a class or function of any module that can be imported."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from condexp.errors import InputError, suggestion
from condexp.models.spec import ModelSpec


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
    # A network is built more than once: what the factory does to a list is not to be kept.
    target, kwargs = spec.target, deepcopy(spec.kwargs)
    factory = find_target(target)
    offered = {"input_shape": tuple(input_shape), "num_outputs": num_outputs}
    try:
        signature = inspect.signature(factory)
    except ValueError:  # written in C; it must know itself
        signature = inspect.Signature([inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
    named = {key: value for key, value in offered.items() if key in signature.parameters}
    arguments = {**named, **kwargs}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        unknown = [key for key in kwargs if key not in signature.parameters]
        near = suggestion(unknown[0], signature.parameters) if unknown else ""
        raise InputError(
            f"model.target={target!r} takes {signature}, and got {_listed(arguments)}: {error}; "
            f"set its arguments as model.kwargs.name=value.{near}"
        ) from error
    try:
        model = factory(**arguments)
    except SystemExit as stop:
        raise InputError(f"model.target={target!r} called sys.exit({stop.code!r}).") from stop
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model.target={target!r} gives {type(model).__name__!r}: give a subclass of "
            "torch.nn.Module, or a function that returns a module."
        )
    return model


def find_target(target: str) -> Callable[..., Any]:
    """Import what ``module:name`` names.

    Args:
        target: The module's dotted name, a colon, a name in it.

    Returns:
        The class or function.

    Raises:
        InputError: If there is no such module or name, importing it fails, or it is not callable.
    """
    name, _, attribute = target.partition(":")
    if not (name and attribute):
        raise InputError(
            f"model.target={target!r}: give module:name, for instance my_models:Net for the class "
            "Net in my_models.py of the current folder."
        )
    here = str(Path.cwd())
    try:
        module = _load_own_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # another that the module needs
            raise InputError(_import_failed(target, error)) from error
        near = suggestion(name, (found.name for found in pkgutil.iter_modules([here])))
        raise InputError(
            f"model.target={target!r}: there is no module {error.name!r}, neither in {here} nor "
            f"among the installed packages.{near}"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(_import_failed(target, error)) from error
    if not hasattr(module, attribute):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(
            f"model.target={target!r}: {name} has no {attribute!r}.{suggestion(attribute, names)}"
        )
    found = getattr(module, attribute)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"model.target={target!r} is of type {type(found).__name__}: name a class or a "
            "function that makes the network, not a finished one."
        )
    return found  # type: ignore[no-any-return]  # callable, as far as one can tell


def load_module(name: str) -> ModuleType:
    """Import a module while a network is built.

    Args:
        name: Its dotted name.

    Returns:
        The module.
    """
    # A network is first sketched on the meta device: a tensor which a module makes as it is
    # imported would be there for good without values.
    with torch.device("cpu"):
        return importlib.import_module(name)


def _load_own_module(name: str) -> ModuleType:
    """Import a module of the current folder, or else an installed one.

    The folder is searched first for this module, and last for whatever it and the libraries
    import: a file ``types.py`` there must not be taken for Python's.

    Returns:
        The module.
    """
    here, top = str(Path.cwd()), name.partition(".")[0]
    if here not in sys.path:
        sys.path.append(here)
    own = None if top in sys.modules else PathFinder.find_spec(top, [here])
    if own is not None and own.loader is not None and own.origin is not None:
        module = sys.modules[top] = module_from_spec(own)
        try:
            with torch.device("cpu"):  # as in load_module
                own.loader.exec_module(module)
        except BaseException:
            del sys.modules[top]
            raise
    return load_module(name)


def _import_failed(target: str, error: BaseException) -> str:
    name = target.partition(":")[0]
    return f"model.target={target!r}: importing {name} failed: {type(error).__name__}: {error}"


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "none"
