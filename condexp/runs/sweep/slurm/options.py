"""The keys of ``hydra.launcher`` for Slurm; ``conf/hydra/launcher/slurm.yaml`` explains them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from condexp.errors import InputError, suggestion

REQUESTS = (  # by the names that submitit gives sbatch's options
    "partition",
    "account",
    "qos",
    "constraint",
    "nodelist",
    "exclude",
    "cpus_per_task",
    "gpus_per_node",
    "gres",
)


@dataclass
class SlurmOptions:
    """What a sweep asks of Slurm; None: as the cluster decides."""

    submitit_folder: str
    name: str = "condexp"
    timeout_min: int = 60
    signal_delay_s: int = 120
    max_num_timeout: int = 20
    array_parallelism: int = 256
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gres: str | None = None
    mem_gb: float | None = None
    setup: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    python: str | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def grace_seconds(self) -> float:
        """Seconds from the signal to the checkpoint; what is left then is for the requeueing."""
        return max(self.signal_delay_s / 2, self.signal_delay_s - 30)

    def requests(self) -> dict[str, Any]:
        """Return what submitit is to ask of Slurm.

        Returns:
            submitit's parameters.
        """
        asked = {name: getattr(self, name) for name in REQUESTS}
        given = {name: value for name, value in asked.items() if value is not None}
        # srun takes a task's cores over from sbatch in no other way since Slurm 22.05.
        cores = [f"export SRUN_CPUS_PER_TASK={self.cpus_per_task}"] if self.cpus_per_task else []
        if self.mem_gb is not None:
            given["mem"] = f"{round(self.mem_gb * 1024)}MB"
        return given | {
            "job_name": self.name,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "setup": [*cores, *self.setup],
            "srun_args": self.srun_args,
            "stderr_to_stdout": True,  # one log a job
            # Some clusters requeue nothing unless asked to, and then refuse that to the job too.
            "additional_parameters": {"requeue": True} | self.additional_parameters,
        }


def slurm_options(given: Mapping[str, Any]) -> SlurmOptions:
    """Check ``hydra.launcher``.

    Args:
        given: Its keys.

    Returns:
        The options.

    Raises:
        InputError: If a key or a value is not allowed.
    """
    names = [option.name for option in fields(SlurmOptions)]
    for name in given:
        if name not in names:
            raise InputError(
                f"unknown key hydra.launcher.{name}: allowed are {', '.join(names)}; any other "
                "option of sbatch is a key of hydra.launcher.additional_parameters."
                f"{suggestion(name, names)}"
            )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SlurmOptions), dict(given))
        options = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or "?"
        reason = str(error).splitlines()[0]
        raise InputError(f"hydra.launcher.{key}={given.get(key)}: {reason}.") from error
    assert isinstance(options, SlurmOptions)
    for name, least in (("timeout_min", 1), ("array_parallelism", 1), ("max_num_timeout", 0)):
        if getattr(options, name) < least:
            raise InputError(
                f"hydra.launcher.{name}={getattr(options, name)}: allowed is {least} or more."
            )
    if not 0 < options.signal_delay_s < options.timeout_min * 60:
        raise InputError(
            f"hydra.launcher.signal_delay_s={options.signal_delay_s}: a job is to be told of its "
            f"end after it began, so allowed is 1 to {options.timeout_min * 60 - 1} at "
            f"hydra.launcher.timeout_min={options.timeout_min}; give it time for its longest step "
            "and a checkpoint."
        )
    return options
