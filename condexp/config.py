"""The typed configuration: every key of ``conf/`` and what it may hold.

Values live in ``conf/``, checks in :mod:`condexp.validation`; a new model adds a record here.
"""

from dataclasses import dataclass
from typing import Any

from condexp.analysis.options import ConvInput, FisherType, Matrix
from condexp.data.gaussian import Shape as SpectrumShape
from condexp.data.transforms import Augment
from condexp.limits import one_of, within
from condexp.linalg.auto import Precision
from condexp.models.init import Init
from condexp.models.mlp import Activation, NormPosition
from condexp.models.norm import Norm
from condexp.models.resnet import Shortcut
from condexp.training.loop import Source
from condexp.training.probe import ProbeMode


@dataclass(kw_only=True)
class LinearConfig:
    """``model=linear``: one linear layer."""

    name: str
    bias: bool
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)


@dataclass(kw_only=True)
class MlpConfig(LinearConfig):
    """``model=mlp``."""

    depth: int = within(1)
    width: int = within(1)
    activation: str = one_of(Activation)
    norm: str = one_of(Norm)
    norm_position: str = one_of(NormPosition)
    last_bn: bool


@dataclass(kw_only=True)
class ResNetConfig:
    """``model=resnet``: CIFAR ResNets of depth 6n + 2."""

    name: str
    depth: int = within(8)
    shortcut: str = one_of(Shortcut)
    widen_factor: int = within(1)
    norm: str = one_of(Norm)
    init: str = one_of(Init)
    init_scale: float = within(0, open_low=True)
    last_bn: bool


@dataclass(kw_only=True)
class SubsetConfig:
    """Number of samples to keep of each split; null keeps all."""

    train: int | None = within(1)
    test: int | None = within(1)


@dataclass(kw_only=True)
class DigitsConfig:
    """``dataset=digits``."""

    name: str
    subset: SubsetConfig
    image_size: int | None = within(1)
    augment: str = one_of(Augment)


@dataclass(kw_only=True)
class FashionMnistConfig(DigitsConfig):
    """``dataset=fashion_mnist``."""

    root: str | None


@dataclass(kw_only=True)
class GaussianConfig:
    """``dataset=gaussian``: linear regression whose covariance spectrum is prescribed."""

    name: str
    dim: int = within(1)
    num_outputs: int = within(1)
    num_train: int = within(1)
    num_test: int = within(1)
    condition_number: float = within(1)
    spectrum: str = one_of(SpectrumShape)
    eigenvalues: list[float] = within(0)
    noise: float = within(0)


@dataclass(kw_only=True)
class SgdConfig:
    """``optimizer=sgd``."""

    name: str
    lr: float = within(0, open_low=True)
    momentum: float = within(0, 1)
    nesterov: bool
    weight_decay: float = within(0)


@dataclass(kw_only=True)
class AdamConfig:
    """``optimizer=adam``."""

    name: str
    lr: float = within(0, open_low=True)
    betas: tuple[float, float] = within(0, 1)
    eps: float = within(0)
    weight_decay: float = within(0)


@dataclass(kw_only=True)
class ConstantConfig:
    """``scheduler=constant``."""

    name: str


@dataclass(kw_only=True)
class MultistepConfig:
    """``scheduler=multistep``."""

    name: str
    milestones: list[int] = within(1)
    gamma: float = within(0, open_low=True)


@dataclass(kw_only=True)
class EvalConfig:
    """When the training and test sets are evaluated; always at the end."""

    every_epochs: int | None = within(1)


@dataclass(kw_only=True)
class TrainerConfig:
    """Length, batches and hardware of a run."""

    epochs: int | None = within(1)
    steps: int | None = within(1)
    batch_size: int | str = within(1)
    device: str
    deterministic: bool
    num_threads: int | None = within(1)
    eval: EvalConfig


@dataclass(kw_only=True)
class ProbeConfig:
    """The fixed samples of ``analysis.source=probe``."""

    size: int = within(1)
    batch_size: int = within(1)
    mode: str = one_of(ProbeMode)


@dataclass(kw_only=True)
class ScheduleConfig:
    """The steps that are analysed: the union of all that is set."""

    every_steps: int | None = within(1)
    every_epochs: int | None = within(1)
    at_steps: list[int] = within(0)
    log_spaced: int | None = within(1)
    at_start: bool
    at_end: bool


@dataclass(kw_only=True)
class LayersConfig:
    """Which layers: globs of module names, or first, last_linear, all."""

    include: list[str]
    exclude: list[str]


@dataclass(kw_only=True)
class AnalysisConfig:
    """What is measured, of which layers, when, and how exactly."""

    matrices: list[str] = one_of(Matrix)
    fisher_type: str = one_of(FisherType)
    source: str = one_of(Source)
    probe: ProbeConfig
    schedule: ScheduleConfig
    conv_input: str = one_of(ConvInput)
    center: bool
    bias: bool
    precision: str = one_of(Precision)
    kappa_p: list[float] = within(0, 1, open_low=True)
    layers: LayersConfig
    save_spectra: bool


@dataclass(kw_only=True)
class StoreConfig:
    """How a commit reaches the disk."""

    durability: str = one_of(("kill", "power"))


@dataclass(kw_only=True)
class RunConfig:
    """Where runs live and what happens to one that exists."""

    root: str
    on_existing: str = one_of(("resume", "restart", "fail"))


@dataclass(kw_only=True)
class Config:
    """One experiment, typed and checked; ``plain`` is the same as nested dicts, for files."""

    experiment: str
    seed: int
    model: MlpConfig | ResNetConfig | LinearConfig
    dataset: DigitsConfig | FashionMnistConfig | GaussianConfig
    optimizer: SgdConfig | AdamConfig
    scheduler: ConstantConfig | MultistepConfig
    trainer: TrainerConfig
    analysis: AnalysisConfig
    store: StoreConfig
    run: RunConfig
    plain: dict[str, Any]


GROUPS: dict[str, type | dict[str, type]] = {
    "model": {"mlp": MlpConfig, "resnet": ResNetConfig, "linear": LinearConfig},
    "dataset": {
        "digits": DigitsConfig,
        "fashion_mnist": FashionMnistConfig,
        "gaussian": GaussianConfig,
    },
    "optimizer": {"sgd": SgdConfig, "adam": AdamConfig},
    "scheduler": {"constant": ConstantConfig, "multistep": MultistepConfig},
    "trainer": TrainerConfig,
    "analysis": AnalysisConfig,
    "store": StoreConfig,
    "run": RunConfig,
}
