"""The user's own code, named on the command line as ``module:name``.

Models, data sets, optimizers and losses are built by it. No torch as this is imported: the
configuration reads the specs of models and data sets, which name such code.
"""

import importlib
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from condexp.errors import InputError, suggestion

CONDEXP = str(Path(__file__).parents[1])  # our own code


def call_target(
    group: str, target: str, kwargs: Mapping[str, Any], offered: Mapping[str, Any], example: str
) -> Any:
    """Call the class or function that ``<group>.target`` names.

    Args:
        group: ``model`` or ``dataset``, for the messages.
        target: ``module:name``. The current folder is searched first.
        kwargs: Its arguments, ``<group>.kwargs``; a copy of them is passed on.
        offered: Arguments that it is given as far as its signature names them; ``kwargs`` win.
        example: What a target is, for the message where it is no ``module:name``.

    Returns:
        What it returned.

    Raises:
        InputError: If there is no such module or name, or it does not take the arguments.
    """
    factory = find_target(f"{group}.target", target, example)
    try:
        signature = inspect.signature(factory)
    except ValueError:  # written in C; it must know itself
        signature = inspect.Signature([inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
    named = {key: value for key, value in offered.items() if key in signature.parameters}
    # It is called more than once: what it does to a list is not to be kept.
    arguments = {**named, **deepcopy(dict(kwargs))}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        unknown = [key for key in kwargs if key not in signature.parameters]
        near = suggestion(unknown[0], signature.parameters) if unknown else ""
        raise InputError(
            f"{group}.target={target!r} takes {signature}, and got {_listed(arguments)}: {error}; "
            f"set its arguments as {group}.kwargs.name=value.{near}"
        ) from error
    try:
        return factory(**arguments)
    except SystemExit as stop:
        raise InputError(f"{group}.target={target!r} called sys.exit({stop.code!r}).") from stop


def find_target(key: str, target: str, example: str) -> Callable[..., Any]:
    """Import what ``module:name`` names.

    Args:
        key: The configuration key that holds it, for the messages.
        target: The module's dotted name, a colon, a name in it.
        example: What a target is, for the message where it is none.

    Returns:
        The class or function.

    Raises:
        InputError: If there is no such module or name, importing it fails, or it is not callable.
    """
    name, _, attribute = target.partition(":")
    if not (name and attribute):
        raise InputError(
            f"{key}={target!r}: give module:name, for instance {example} of the current folder."
        )
    here = str(Path.cwd())
    try:
        module = _load_own_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # another that the module needs
            raise InputError(_import_failed(key, target, error)) from error
        near = suggestion(name, (found.name for found in pkgutil.iter_modules([here])))
        raise InputError(
            f"{key}={target!r}: there is no module {error.name!r}, neither in {here} nor "
            f"among the installed packages.{near}"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(_import_failed(key, target, error)) from error
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise InputError(
            f"{key}={target!r}: {name} has no {attribute!r}.{suggestion(attribute, names)}"
        )
    found = getattr(module, attribute)
    from torch import nn

    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"{key}={target!r} is of type {type(found).__name__}: name a class or a function that "
            f"makes the {key.partition('.')[0]}, not a finished one."
        )
    return found  # type: ignore[no-any-return]  # callable, as far as one can tell


def load_module(name: str) -> ModuleType:
    """Import a module, maybe while a network is built.

    Args:
        name: Its dotted name.

    Returns:
        The module.
    """
    import torch

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
    import torch

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


def said_where(error: BaseException) -> str:
    """Say what an error is, and the line of the user's code that led to it.

    Args:
        error: What was raised.

    Returns:
        A sentence: its type, the first line of its message, the file and the line.
    """
    line = _own_line(error)
    said = next(iter(str(error).splitlines()), "").removesuffix(".")
    reason = said or (line.line if line is not None and line.line else "no message")
    return f"{type(error).__name__}: {reason}{where(error)}."


def where(error: BaseException) -> str:
    """Say where in the user's code an error came from.

    Args:
        error: What was raised.

    Returns:
        ``" (FILE, line N)"``: the innermost line that is neither condexp's nor of Python or of an
        installed package; empty where there is none.
    """
    line = _own_line(error)
    return f" ({line.filename}, line {line.lineno})" if line is not None else ""


def _own_line(error: BaseException) -> traceback.FrameSummary | None:
    installed = ("site-packages", "dist-packages", "<", sysconfig.get_path("stdlib"), CONDEXP)
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((f for f in frames if not any(each in f.filename for each in installed)), None)


def _import_failed(key: str, target: str, error: BaseException) -> str:
    name = target.partition(":")[0]
    place = "" if isinstance(error, SyntaxError) else where(error)  # which says it itself
    return f"{key}={target!r}: importing {name} failed: {type(error).__name__}: {error}{place}"


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "none"
