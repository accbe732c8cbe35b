"""The origins of a report's numbers: commands, seeds, code, versions and machines of its runs."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from condexp.errors import InputError
from condexp.results.config_keys import flatten, lookup
from condexp.results.tables.keys import sort_keys
from condexp.results.tables.table import describe_data
from condexp.store.files import read_json
from condexp.store.reader import Run
from condexp.store.run_folder.completeness import read_statuses
from condexp.store.schema.layout import FILE_NAME

PROVENANCE_NAME = "provenance.json"
PACKAGES = ("condexp", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "hydra-core")
HARDWARE = ("system", "processor", "num_cores", "gpu", "device", "num_threads")
SHORT_COMMIT = 12


def describe_runs(experiments: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
    """Say what each experiment's runs are.

    Args:
        experiments: Run folders by experiment.

    Returns:
        One row an experiment: ``experiment``, ``runs`` by state, ``seeds``, ``data`` with its
        sizes and the length of training, ``profile``, and ``time`` of all runs together.
    """
    rows = []
    for name, folders in experiments.items():
        statuses = read_statuses(folders)
        configs = pd.DataFrame([dict(flatten(config)) for config in map(_config, folders)])
        states = Counter(str(status.state) for status in statuses.values())
        seconds = sum(status.seconds for status in statuses.values())
        rows.append({
            "experiment": name,
            "runs": ", ".join(f"{num} {state}" for state, num in sorted(states.items())),
            "seeds": _unique(configs.get("seed", [])),
            "data": describe_data(configs),
            "profile": _unique(configs.get("profile", [])),
            "time": str(timedelta(seconds=round(seconds))),
        })
    return pd.DataFrame(rows)


def commands(folders: Iterable[Path]) -> list[str]:
    """List the commands that made runs.

    Args:
        folders: The runs.

    Returns:
        Each command once, as a shell takes it.
    """
    argvs = (lookup(read_provenance(folder), "argv") for folder in folders)
    # On a line of its own each: a line break could end the block of code that they stand in.
    return sorted({
        shlex.join(map(str, argv)).replace("\n", "␊") for argv in argvs if isinstance(argv, list)
    })


def describe_machines(folders: Iterable[Path]) -> pd.DataFrame:
    """Say on what code, versions and hardware runs were made.

    Args:
        folders: The runs.

    Returns:
        A row a fact, ``what`` and ``value``; where runs differ, all values with their number of
        runs.
    """
    facts: dict[str, Counter[str]] = {}
    for folder in folders:
        for what, value in _facts(read_provenance(folder)).items():
            facts.setdefault(what, Counter())[value] += 1
    rows = []
    for what, values in facts.items():
        texts = [f"{value} ({num} runs)" for value, num in sorted(values.items())]
        rows.append({"what": what, "value": "; ".join(texts if len(values) > 1 else values)})
    return pd.DataFrame(rows, columns=["what", "value"])


def _facts(origin: Mapping[str, Any]) -> dict[str, str]:
    if not origin:
        return {"code": "not recorded"}
    commit, versions = lookup(origin, "git.commit"), lookup(origin, "packages")
    code = str(commit)[:SHORT_COMMIT] if commit else "an installed package"
    hardware = {name: lookup(origin, f"hardware.{name}") for name in HARDWARE}
    versions = versions if isinstance(versions, Mapping) else {}
    return {
        "code": f"{code} with uncommitted changes" if lookup(origin, "git.diff") else code,
        "Python": str(origin.get("python", "")).split(" ")[0],
        **{name: str(versions[name]) for name in PACKAGES if name in versions},
        "system": str(hardware["system"]),
        "processor": f"{hardware['processor']}, {hardware['num_cores']} cores",
        "device": f"{hardware['gpu'] or hardware['device']}, {_threads(hardware['num_threads'])}",
    }


def _threads(num: Any) -> str:
    return f"{num} thread{'s' * (num != 1)}"


def describe_threads(folder: Path) -> str:
    """Say what a run's numbers hold for: its last digits hang on threads and processor.

    Args:
        folder: The run's folder.

    Returns:
        ``"2 threads of AMD EPYC"``; empty where it is not recorded.
    """
    origin = read_provenance(folder)
    num, processor = (lookup(origin, f"hardware.{name}") for name in ("num_threads", "processor"))
    if not isinstance(num, int):
        return ""
    return f"{_threads(num)} of {processor}" if processor else _threads(num)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read where a run's numbers come from.

    Args:
        folder: The run's folder.

    Returns:
        The content of ``provenance.json``; empty where it has none that can be read.
    """
    try:
        return read_json(folder / PROVENANCE_NAME)
    except InputError:  # a run that failed early has none, and must not hide the others
        return {}


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        return Run(folder / FILE_NAME).config
    except (InputError, OSError):
        return {}


def _unique(values: Iterable[Any]) -> str:
    known = {(value,) for value in values if value is not None and value == value}
    return ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for (value,) in sort_keys(known)
    )
