"""torchvision's classifiers by name, as they are: their own layers, names and initial weights."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from condexp.errors import InputError, suggestion
from condexp.models.checks import check_image, check_sizes
from condexp.models.imported import load_module

NUM_CHANNELS = 3
# In training mode these two return further outputs besides the classes', unless told not to.
WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")


def build_torchvision(input_shape: Sequence[int], num_outputs: int, *, arch: str) -> nn.Module:
    """Build one of torchvision's classifiers, untrained.

    Which image sizes it takes is the architecture's own affair: many need 32 px at least, a vision
    transformer just its 224 px.

    Args:
        input_shape: Shape of one image, (3, H, W).
        num_outputs: Classes.
        arch: Its name, one of ``torchvision.models.list_models(module=torchvision.models)``.

    Returns:
        The model, images [N, 3, H, W] to [N, num_outputs].

    Raises:
        InputError: If there is no such classifier, or the images do not have three channels.
    """
    models: Any = load_module("torchvision.models")  # takes seconds: only where it is asked for
    names = models.list_models(module=models)
    if arch not in names:
        raise InputError(
            f"unknown model.arch {arch!r}: allowed are the {len(names)} classifiers of "
            f"torchvision.models, from {names[0]} to {names[-1]}.{suggestion(arch, names)}"
        )
    channels = check_image(f"torchvision {arch}", input_shape)
    check_sizes(f"torchvision {arch}", num_outputs=num_outputs)
    if channels != NUM_CHANNELS:
        raise InputError(
            f"torchvision {arch} takes images of {NUM_CHANNELS} channels, these have {channels} "
            f"(shape {tuple(input_shape)}); use a data set in colour, or one of the models that "
            "take any: mlp, vgg, resnet, preresnet, resnet_imagenet."
        )
    options: dict[str, Any] = {}
    if arch in WITH_AUXILIARY_OUTPUTS:
        options = {"aux_logits": False, "init_weights": True}
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_outputs, **options)
    return model
