"""The configurations of a sweep's jobs: what they share is composed once."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache

from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

KEPT = 32  # compositions at a time: a sweep's groups change seldom


class JobComposer:
    """Composes jobs that choose the same files once, and sets their values as Hydra does: last.

    A job that does more than to choose files and to set values that are there is Hydra's own.

    Args:
        load: Hydra's composition of a job's overrides.
        parse: Hydra's parser of overrides.
    """

    def __init__(
        self,
        load: Callable[[list[str]], DictConfig],
        parse: Callable[[list[str]], list[Override]],
    ) -> None:
        self._load = load
        self._parsed = lru_cache(1 << 14)(lambda text: parse([text])[0])
        self._base = lru_cache(KEPT)(lambda chosen: load(list(chosen)))

    def __call__(self, job: Sequence[str]) -> DictConfig:
        """Return the configuration of a job, with its ``hydra`` node.

        Args:
            job: Its overrides.

        Returns:
            What Hydra composes of them.
        """
        try:
            overrides = [self._parsed(text) for text in job]
            if all(_is_plain(each) for each in overrides):
                chosen = tuple(
                    text for text, each in zip(job, overrides, strict=True) if not _is_value(each)
                )
                composed = deepcopy(self._base(chosen))
                values = [each for each in overrides if _is_value(each)]
                if all(_is_leaf(composed, each.key_or_group) for each in values):
                    for each in values:
                        OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
                    composed.hydra.overrides.task = list(job)
                    return composed
        except (HydraException, OmegaConfBaseException):
            pass  # Hydra says why
        return self._load(list(job))


def _is_plain(override: Override) -> bool:
    return override.type is OverrideType.CHANGE and not override.is_hydra_override()


def _is_value(override: Override) -> bool:
    """Return whether a key is a value's; that of a group of files has no dot."""
    key = override.key_or_group
    return override.package is None and "/" not in key and ("." in key or key == "seed")


def _is_leaf(composed: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(composed, parent) if parent else composed
    if not isinstance(node, DictConfig) or name not in node:
        return False
    return not isinstance(node._get_node(name), DictConfig)
