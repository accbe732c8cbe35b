"""The keys of ``conf/analysis``."""

from dataclasses import dataclass

from condexp.analysis.vocabulary import (
    ConvInput,
    FisherType,
    Matrix,
    NetworkPrecision,
    Precision,
    WeightSharing,
)
from condexp.errors import one_of, within
from condexp.training.choices import ProbeMode, Source


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
    log_spaced: int | None = within(1, 100_000)
    at_start: bool
    at_end: bool


@dataclass(kw_only=True)
class SharpnessConfig:
    """λ_max of the Hessian over the training steps."""

    every_steps: int | None = within(1)


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
    mc_samples: int = within(1)
    source: str = one_of(Source)
    probe: ProbeConfig
    schedule: ScheduleConfig
    conv_input: str = one_of(ConvInput)
    weight_sharing: str = one_of(WeightSharing)
    center: bool
    bias: bool
    precision: str = one_of(Precision)
    network_precision: str = one_of(NetworkPrecision)
    top_k: int = within(1, 1000)
    eigenvalue_tolerance: float = within(0, 0.5, open_low=True)
    num_random_vectors: int = within(2)
    num_lanczos_steps: int = within(2)
    layer_blocks: bool
    sharpness: SharpnessConfig
    kappa_p: list[float] = within(0, 1, open_low=True)
    layers: LayersConfig
    save_spectra: bool
    memory_limit: float | None = within(0, open_low=True)  # GB, of 10^9 bytes
