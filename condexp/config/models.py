"""The keys of ``conf/model``; a new model adds its record here."""

from dataclasses import dataclass
from typing import Any

from condexp.config.constraints import one_of, within
from condexp.models.choices import Activation, Init, Norm, NormPosition, Shortcut


@dataclass(kw_only=True)
class ModelConfig:
    """What every model has: the name that picks its builder."""

    name: str

    @property
    def title(self) -> str:
        """The model in words, for messages and the run's title."""
        return self.name


@dataclass(kw_only=True)
class LinearConfig(ModelConfig):
    """``model=linear``: one linear layer."""

    bias: bool
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)


@dataclass(kw_only=True)
class MlpConfig(LinearConfig):
    """``model=mlp``."""

    depth: int = within(1, 10_000)
    width: int = within(1)
    activation: str = one_of(Activation)
    norm: str = one_of(Norm)
    norm_position: str = one_of(NormPosition)
    last_bn: bool


@dataclass(kw_only=True)
class CnnConfig(MlpConfig):
    """``model=cnn``: the same keys, for convolutions."""


@dataclass(kw_only=True)
class ResNetConfig(ModelConfig):
    """``model=resnet``: CIFAR ResNets of depth 6n + 2."""

    depth: int = within(8, 10_000)
    shortcut: str = one_of(Shortcut)
    widen_factor: int = within(1)
    norm: str = one_of(Norm)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool


@dataclass(kw_only=True)
class PreResNetConfig(ResNetConfig):
    """``model=preresnet``: with its activations before the convolutions."""


@dataclass(kw_only=True)
class ResNetImagenetConfig(ModelConfig):
    """``model=resnet_imagenet``: ImageNet's ResNets."""

    depth: int
    norm: str = one_of(Norm)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool
    dropout: float = within(0, 1)


@dataclass(kw_only=True)
class VggConfig(ModelConfig):
    """``model=vgg``."""

    depth: int
    norm: str = one_of(Norm)
    norm_position: str = one_of(NormPosition)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool


@dataclass(kw_only=True)
class TorchvisionConfig(ModelConfig):
    """``model=torchvision``: a classifier of torchvision's, by its name there."""

    arch: str

    @property
    def title(self) -> str:
        """The architecture."""
        return f"{self.name} {self.arch}"


@dataclass(kw_only=True)
class ImportConfig(ModelConfig):
    """``model=import``: the user's own, ``module:name`` and free keyword arguments."""

    target: str
    kwargs: dict[str, Any]

    @property
    def title(self) -> str:
        """The class or function."""
        return f"{self.name} {self.target}"


MODELS: dict[str, type[ModelConfig]] = {
    "mlp": MlpConfig,
    "cnn": CnnConfig,
    "resnet": ResNetConfig,
    "linear": LinearConfig,
    "vgg": VggConfig,
    "preresnet": PreResNetConfig,
    "resnet_imagenet": ResNetImagenetConfig,
    "torchvision": TorchvisionConfig,
    "import": ImportConfig,
}
