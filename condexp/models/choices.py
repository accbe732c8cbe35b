"""The values of a model's keys, as norm=batch; the models themselves are found by their files.

The configuration reads these names too, so there is no torch here.
"""

from enum import StrEnum


class Norm(StrEnum):
    """Which normalisation."""

    NONE = "none"
    BATCH = "batch"
    LAYER = "layer"
    GROUP = "group"
    CENTER = "center"
    SCALE = "scale"


class Activation(StrEnum):
    """Which activation."""

    RELU = "relu"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    GELU = "gelu"
    IDENTITY = "identity"


class NormPosition(StrEnum):
    """Where the normalisation stands with respect to the activation."""

    BEFORE = "before"
    AFTER = "after"


class Init(StrEnum):
    """How weights are drawn."""

    LECUN = "lecun"
    HE = "he"
    XAVIER = "xavier"
    ORTHOGONAL = "orthogonal"
    NORMAL = "normal"


class Shortcut(StrEnum):
    """The shortcuts of He et al. 2016a, §4.1.

    A: without parameters, new channels are zero. B: projection where the shape changes. C: always
    projection.
    """

    A = "A"
    B = "B"
    C = "C"
