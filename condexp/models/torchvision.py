"""torchvision's classifiers by name, as they are: their own layers, names and initial weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from condexp.errors import InputError, suggestion
from condexp.models.checks import check_image
from condexp.models.spec import ModelSpec
from condexp.models.user_code import load_module

NUM_CHANNELS = 3
# In training mode these two return further outputs besides the classes', unless told not to.
WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")


@dataclass(frozen=True, kw_only=True)
class Spec(ModelSpec):
    """The keys of ``conf/model/torchvision.yaml``."""

    arch: str

    @property
    def title(self) -> str:
        """The architecture."""
        return f"{self.name} {self.arch}"


def build(spec: Spec, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build one of torchvision's classifiers, untrained.

    Which image sizes it takes is the architecture's own affair: many need 32 px at least, a vision
    transformer just its 224 px.

    Args:
        spec: The keys; ``arch`` is one of
            ``torchvision.models.list_models(module=torchvision.models)``.
        input_shape: Shape of one image, (3, H, W).
        num_outputs: Classes.

    Returns:
        The model, images [N, 3, H, W] to [N, num_outputs].

    Raises:
        InputError: If there is no such classifier, or the images do not have three channels.
    """
    models: Any = load_module("torchvision.models")  # takes seconds: only where it is asked for
    arch, names = spec.arch, models.list_models(module=models)
    if arch not in names:
        raise InputError(
            f"unknown model.arch {arch!r}: allowed are the {len(names)} classifiers of "
            f"torchvision.models, from {names[0]} to {names[-1]}.{suggestion(arch, names)}"
        )
    channels = check_image(spec.title, input_shape, num_outputs)
    if channels != NUM_CHANNELS:
        raise InputError(
            f"{spec.title} takes images of {NUM_CHANNELS} channels, these have {channels} "
            f"(shape {tuple(input_shape)}); use dataset.channels=3, which repeats them, "
            "or one of the models that take any: mlp, vgg, resnet, preresnet, resnet_imagenet."
        )
    options: dict[str, Any] = {}
    if arch in WITH_AUXILIARY_OUTPUTS:
        options = {"aux_logits": False, "init_weights": True}
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_outputs, **options)
    return model
