"""Networks that others published, to compare ours with."""

import torch
from torch import nn

from tests.from_conf import build


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def copy_in_order(ours: nn.Module, theirs: nn.Module) -> None:
    """Give our network the other's weights and statistics: the same tensors in the same order."""
    other = list(theirs.state_dict().values())
    names = list(ours.state_dict())
    ours.load_state_dict(dict(zip(names, other, strict=True)))


def torchvision_net(arch: str, num_outputs: int, size: int) -> nn.Module:
    """torchvision's network, perturbed."""
    torch.manual_seed(0)
    return perturbed(build("torchvision", (3, size, size), num_outputs, arch=arch))


def perturbed(model: nn.Module) -> nn.Module:
    """The model in float64, no parameter or statistic of a normalisation at its default."""
    model = model.double()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                with torch.no_grad():
                    tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator).double())
    return model
