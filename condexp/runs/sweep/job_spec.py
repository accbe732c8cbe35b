"""One job of a sweep, as it crosses from the process that plans it to the one that runs it."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import yaml


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Everything that is known of a job before it starts.

    Attributes:
        name: Its number in the sweep, and the overrides that not all jobs share.
        folder: Its run folder, absolute.
        config: Its validated configuration with ``experiment`` and ``profile``, as YAML.
        argv: The sweep's command line, for ``provenance.json``.
        fail_fast: Whether it must not start after another job's failure.
        timeout: Seconds it may take; None: no limit.
        draws_bar: Whether it may draw on the terminal, which no other job uses meanwhile.
    """

    name: str
    folder: Path
    config: str
    argv: tuple[str, ...]
    fail_fast: bool
    timeout: float | None
    draws_bar: bool = False

    def to_json(self) -> str:
        """Return the job as one line of JSON."""
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a job as :meth:`to_json` wrote it.

        Args:
            text: The line.

        Returns:
            The job.
        """
        content = json.loads(text)
        folder, argv = Path(content.pop("folder")), tuple(content.pop("argv"))
        return cls(folder=folder, argv=argv, **content)

    def resumed(self) -> "JobSpec":
        """Return the same job with ``run.on_existing=resume``, for one that began before."""
        config = yaml.safe_load(self.config)
        config["run"]["on_existing"] = "resume"
        return replace(self, config=dump_config(config))


def dump_config(config: object) -> str:
    """Write a configuration as YAML, its keys in their order.

    Args:
        config: Nested mappings of plain values.

    Returns:
        The YAML.
    """
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
