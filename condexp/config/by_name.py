"""Models and data sets by name: each is a file of ``condexp/models`` or ``condexp/data``.

The file is imported when its name is chosen and not before, because it imports torch.
"""

from importlib import import_module
from keyword import iskeyword
from pkgutil import iter_modules
from types import ModuleType

from condexp import data, models
from condexp.errors import choose

PACKAGES = {"model": models, "dataset": data}


def find(group: str, name: str) -> ModuleType:
    """Import the file of a model or a data set.

    Args:
        group: ``model`` or ``dataset``.
        name: The model or the data set.

    Returns:
        The module, which defines ``Spec``, and ``build`` or ``load``.

    Raises:
        InputError: If there is no such file.
    """
    known = name in _files(group) and hasattr(_import(group, name), "Spec")
    return _import(group, choose(f"{group}.name", name, [name] if known else names(group)))


def names(group: str) -> list[str]:
    """List the models or the data sets; all are imported.

    Args:
        group: ``model`` or ``dataset``.

    Returns:
        The names of the files that define a ``Spec``. The others hold parts.
    """
    return [name for name in _files(group) if hasattr(_import(group, name), "Spec")]


def _files(group: str) -> list[str]:
    return [file.name.removesuffix("_") for file in iter_modules(PACKAGES[group].__path__)]


def _import(group: str, name: str) -> ModuleType:
    # import is a keyword of Python, so model=import is in import_.py.
    return import_module(f"{PACKAGES[group].__name__}.{name}{'_' * iskeyword(name)}")
