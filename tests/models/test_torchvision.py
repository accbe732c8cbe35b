import pytest
import torch
from torch import Tensor

from condexp.errors import InputError
from tests.from_conf import build
from tests.models import published


@pytest.mark.parametrize(
    ("arch", "size"),
    # As torchvision documents them (with 1000 classes).
    [("mobilenet_v2", 3_504_872), ("densenet121", 7_978_856), ("resnet18", 11_689_512)],
)
def test_published_sizes(arch: str, size: int) -> None:
    with torch.device("meta"):
        model = build("torchvision", (3, 224, 224), 1000, arch=arch)
    assert published.num_parameters(model) == size


@pytest.mark.parametrize(("arch", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_no_auxiliary_outputs_in_training_mode(arch: str, size: int) -> None:
    with torch.device("meta"):
        model = build("torchvision", (3, size, size), 5, arch=arch).train()
        outputs = model(torch.empty(2, 3, size, size))
    assert isinstance(outputs, Tensor)
    assert outputs.shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet19"}, r"unknown model.arch 'resnet19': .*Did you mean 'resnet1[0-9]*'"),
        # A detector and a segmenter of torchvision's, but no classifiers.
        ({"arch": "fasterrcnn_resnet50_fpn"}, "unknown model.arch 'fasterrcnn"),
        ({"arch": "fcn_resnet50"}, "unknown model.arch 'fcn_resnet50'"),
        ({"input_shape": (1, 28, 28)}, "resnet18 takes images of 3 channels, these have 1"),
        ({"input_shape": (20,)}, r"torchvision resnet18 needs images of shape \(C, H, W\)"),
        ({"num_outputs": 0}, "num_outputs is 0"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"input_shape": (3, 32, 32), "num_outputs": 10, "arch": "resnet18"}
    with pytest.raises(InputError, match=message):
        build("torchvision", **{**good, **arguments})  # type: ignore[arg-type]
