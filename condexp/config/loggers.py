"""The keys of ``conf/logger``."""

from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from condexp.errors import InputError, one_of


@dataclass(kw_only=True)
class TensorboardConfig:
    """``logger=tensorboard``."""


@dataclass(kw_only=True)
class MlflowConfig:
    """``logger=mlflow``.

    Raises:
        InputError: If the address holds credentials, which would be stored with the run.
    """

    tracking_uri: str | None
    experiment: str | None

    def __post_init__(self) -> None:
        address = urlsplit(self.tracking_uri or "")
        if address.username or address.password:
            raise InputError(
                "logger.mlflow.tracking_uri holds a user's name or password, which would be stored "
                "with the run: leave it out, and set MLFLOW_TRACKING_URI, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment."
            )


@dataclass(kw_only=True)
class WandbConfig:
    """``logger=wandb``."""

    project: str
    entity: str | None
    mode: str | None = one_of(("online", "offline"))


@dataclass(kw_only=True)
class LoggerConfig:
    """What each logger gets, and the loggers that are on."""

    layers: list[str]
    measures: list[str] | None
    tensorboard: TensorboardConfig | None = None
    mlflow: MlflowConfig | None = None
    wandb: WandbConfig | None = None

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """The options of each logger that is on, by its name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name: vars(options) for name, options in every.items() if options is not None}
