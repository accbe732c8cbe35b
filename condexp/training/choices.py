"""Names of training choices and states. Configuration and store read them: no torch here."""

from enum import StrEnum


class Source(StrEnum):
    """Which samples a snapshot is taken from."""

    TRAIN_BATCH = "train_batch"
    PROBE = "probe"


class RunState(StrEnum):
    """How far training came."""

    UNFINISHED = "unfinished"
    COMPLETE = "complete"
    DIVERGED = "diverged"


class ProbeMode(StrEnum):
    """The mode of the whole network while it is probed; BatchNorm is where it matters."""

    TRAIN = "train"
    EVAL = "eval"


class ModelPrecision(StrEnum):
    """Arithmetic of the network's forward pass, and so of its backward pass."""

    FP32 = "fp32"
    BF16 = "bf16"
