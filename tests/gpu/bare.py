"""Lets checks and benchmarks run where torch, torchvision, h5py and hydra are all there is."""

import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import ModuleType


class _NoController:
    """Stands for threadpoolctl's where it is missing: it finds no library whose threads it sets."""

    lib_controllers: tuple[object, ...] = ()

    def select(self, **_: object) -> "_NoController":
        return self

    def limit(self, **_: object) -> AbstractContextManager[None]:
        return nullcontext()


def allow_bare_machine() -> None:
    """Stand in for what condexp imports and can measure without, where it is missing."""
    if find_spec("threadpoolctl") is None:
        stub = ModuleType("threadpoolctl")
        stub.ThreadpoolController = _NoController  # type: ignore[attr-defined]
        sys.modules["threadpoolctl"] = stub
