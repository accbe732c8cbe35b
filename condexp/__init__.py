"""Layer-wise conditioning analysis of deep networks, while they train.

The library's face: ``analyze`` and ``Recorder`` measure a model and give a ``Snapshot`` of
``Spectrum`` records; ``run`` runs an experiment as the command line does, and ``record_run`` lets
your own loop leave a run folder; ``open_run`` and ``collect`` read what runs have stored.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from condexp.analysis.analyze import analyze
    from condexp.analysis.linalg.spectrum import Spectrum
    from condexp.analysis.recorder import Recorder
    from condexp.analysis.snapshot import Snapshot
    from condexp.cli.from_python import run
    from condexp.results.collect import collect
    from condexp.runs.record import record_run
    from condexp.store.reader import open_run
    from condexp.training.snapshot_schedule import Schedule

__all__ = [
    "Recorder",
    "Schedule",
    "Snapshot",
    "Spectrum",
    "analyze",
    "collect",
    "open_run",
    "record_run",
    "run",
]

# Looked up on first use, so that the command line answers without importing torch.
_HOMES = {
    "Recorder": "condexp.analysis.recorder",
    "Schedule": "condexp.training.snapshot_schedule",
    "Snapshot": "condexp.analysis.snapshot",
    "Spectrum": "condexp.analysis.linalg.spectrum",
    "analyze": "condexp.analysis.analyze",
    "collect": "condexp.results.collect",
    "open_run": "condexp.store.reader",
    "record_run": "condexp.runs.record",
    "run": "condexp.cli.from_python",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("condexp")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
