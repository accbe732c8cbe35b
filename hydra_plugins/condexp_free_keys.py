"""``/free_keys@kwargs`` in a defaults list makes ``kwargs`` a mapping that takes any key.

Hydra closes a composed configuration to unknown keys, and YAML cannot exempt a part of it. Hydra
imports this namespace before it composes anything.
"""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

ConfigStore.instance().store(
    name="free_keys", node=OmegaConf.create({}, flags={"struct": False}), provider="condexp"
)
