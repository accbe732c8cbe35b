"""Random networks as small programs: written once, run as a module here, explicitly elsewhere.

A program is a list of steps on activations ``[N, …]``. :class:`Net` runs it with torch's modules
and functions, in every way in which people use a weight; :mod:`.explicit` runs it by hand and keeps
the rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NUM_CLASSES = 3
# Large: of two features a normalisation leaves the signs, and a gradient of rounding and eps.
EPS = 0.1


@dataclass(frozen=True)
class Step:
    """One step: its kind, the layer it calls by name, and how.

    Args:
        kind: What is done; see :meth:`Net.step`.
        layer: Name of a layer; empty where there is none.
        how: The way in which it is done.
        body: Steps of an inner section.
    """

    kind: str
    layer: str = ""
    how: str = ""
    body: tuple["Step", ...] = ()


@dataclass
class Program:
    """A network, and how it is measured.

    Args:
        shape: Shape of one input.
        layers: Modules by name.
        steps: What is done.
        frozen: Names of layers whose weights are not trained.
        training: Whether batch normalisations take the batch's statistics.
        num_samples: N.
        loss: ``cross_entropy`` or ``mse``.
        way: ``analyze``, ``recorder``, ``accumulate``, or ``float64``: the network is in float32,
            and measured by ``network_precision="float64"``.
        seed: Seed of weights and data.
    """

    shape: tuple[int, ...]
    layers: dict[str, nn.Module] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    frozen: set[str] = field(default_factory=set)
    training: bool = False
    num_samples: int = 4
    loss: str = "cross_entropy"
    way: str = "analyze"
    seed: int = 0

    def features(self) -> set[str]:
        """What occurs in it, for a report."""

        def of(steps: Sequence[Step]) -> set[str]:
            found: set[str] = set()
            for step in steps:
                found |= {f"{step.kind}:{step.how}" if step.how else step.kind} | of(step.body)
            return found

        dims = {1: "vector", 2: "sequence", 3: "grid or image"}[len(self.shape)]
        tied = "tied" if any(name.startswith("tied") for name in self.layers) else ""
        mode = "train" if self.training else "eval"
        frozen = "frozen" if self.frozen else ""
        return (of(self.steps) | {dims, tied, mode, frozen, self.way}) - {""}


class OwnAttention(nn.Module):
    """One head, of four linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).mT / x.shape[-1] ** 0.5
        out: Tensor = self.o(scores.softmax(-1) @ self.v(x))
        return out


class Net(nn.Module):
    """A program as torch's modules and functions run it."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.layers, self.steps = nn.ModuleDict(program.layers), program.steps

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.steps, x)

    def run(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        for step in steps:
            x = self.step(step, x)
        return x

    def step(self, step: Step, x: Tensor) -> Tensor:
        layer: Any = self.layers[step.layer] if step.layer else None
        out: Tensor
        match step.kind:
            case "layer":
                out = self.call(layer, step.how, x)
            case "act":
                out = self.act(step.how, x)
            case "norm" if isinstance(layer, nn.BatchNorm1d) and x.ndim > 2:
                out = layer(x.flatten(0, -2)).reshape(x.shape)
            case "norm":
                out = layer(x)
            case "mha":
                out, _ = layer(x, x, x, need_weights=False)
            case "pool":
                out = x.flatten(1, -2).mean(1) if step.how == "rows" else x.flatten(2).mean(2)
            case "flatten":
                out = x.flatten(1)
            case "channels_last":
                out = x.permute(0, 2, 3, 1)
            case _:
                out = self.section(step, x)
        return out

    def section(self, step: Step, x: Tensor) -> Tensor:
        """Run a step that has steps inside."""
        run: Callable[[Tensor], Tensor] = partial(self.run, step.body)
        out: Tensor
        match step.kind:
            case "residual":
                out = x + run(x)
            case "residual_":
                out = run(x)
                out += x
            case "checkpoint":
                reentrant = step.how == "reentrant" and x.requires_grad  # else it keeps no graph
                out = checkpoint(run, x, use_reentrant=reentrant)
            case "sequence_first":
                out = run(x.transpose(0, 1)).transpose(0, 1)
            case "views":
                first, second = run(torch.cat([x, x.flip(-1)])).chunk(2)
                out = first + 0.5 * second
            case "no_grad":
                with torch.no_grad():
                    side = run(x)
                out = x + side
            case _:
                raise ValueError(step.kind)
        return out

    @staticmethod
    def call(layer: Any, how: str, x: Tensor) -> Tensor:
        if how == "module":
            return layer(x)  # type: ignore[no-any-return]
        if how == "keyword":
            return layer(input=x)  # type: ignore[no-any-return]
        if how == "matmul":
            return x @ layer.weight.mT + layer.bias  # type: ignore[no-any-return]
        if isinstance(layer, nn.Linear):
            return F.linear(x, layer.weight, layer.bias)
        return F.conv2d(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    @staticmethod
    def act(how: str, x: Tensor) -> Tensor:
        match how:
            case "relu":
                return x.relu()
            case "relu_":
                return torch.relu_(x)
            case "F.relu_":
                return F.relu(x, inplace=True)
            case "tanh":
                return x.tanh()
            case "gelu":
                return F.gelu(x)
            case "mul_":
                return x.mul_(0.7)
            case "add_":
                x += 0.3
                return x
        raise ValueError(how)


class Writer:
    """Writes programs.

    Args:
        random: Where choices come from.
    """

    def __init__(self, random: Random) -> None:
        self.random = random

    def chance(self, share: float) -> bool:
        return self.random.randrange(100) < 100 * share

    def pick(self, *choices: Any) -> Any:
        return choices[self.random.randrange(len(choices))]

    def number(self, low: int, high: int) -> int:
        return self.random.randrange(low, high + 1)

    def write(self) -> Program:
        width = self.number(2, 5)
        lengths = [(), (self.number(2, 4),), (2, self.number(2, 3))]
        image = (self.number(1, 2) * 2, self.number(4, 5), 4)
        lengths.append(lengths[1])  # most of what is done to rows is done to sequences
        shape = self.pick(*((*length, width) for length in lengths), image)
        self.program = Program(tuple(shape), seed=self.number(0, 10**6))
        self.linear_shapes: dict[str, tuple[int, int]] = {}
        program = self.program
        program.num_samples = self.pick(4, 6)
        program.training = self.chance(0.3)
        program.loss = self.pick("cross_entropy", "cross_entropy", "mse")
        program.way = self.pick(*["analyze"] * 4, "float64", "recorder", "accumulate")
        if program.way == "accumulate":
            program.num_samples = 6  # in micro-batches of three: batch statistics of two are void
        if shape is image:
            steps, shape = self.image(shape)
        else:
            steps = []
        more, shape = self.section(tuple(shape), self.number(1, 4), outermost=True)
        steps += more
        if len(shape) > 1:
            flat = self.chance(0.5)
            steps.append(Step("flatten") if flat else Step("pool", how="rows"))
            total = 1
            for size in shape:
                total *= size
            shape = (total if flat else shape[-1],)
        head = self.linear(shape[0], NUM_CLASSES)
        program.steps = [*steps, Step("layer", head, "module")]
        return program

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.program.layers)}"

    def linear(self, d_in: int, d_out: int) -> str:
        """A new layer, or one whose weight is another's."""
        same = [n for n, s in self.linear_shapes.items() if s == (d_out, d_in)]
        layers = self.program.layers
        tied = bool(same) and self.chance(0.25)
        name = self.name("tied" if tied else "linear")
        layers[name] = nn.Linear(d_in, d_out, bias=not tied or self.chance(0.7))
        if tied:
            layers[name].weight = layers[self.pick(*same)].weight
        elif self.chance(0.05) and self.linear_shapes:
            self.program.frozen.add(name)
        self.linear_shapes[name] = (d_out, d_in)
        return name

    def call(self, d_in: int, d_out: int) -> Step:
        """A call of a new layer, or of one that was called before."""
        same = [n for n, s in self.linear_shapes.items() if s == (d_out, d_in)]
        again = bool(same) and self.chance(0.2)
        name = self.pick(*same) if again else self.linear(d_in, d_out)
        how = self.pick(*["module"] * 8, "keyword", "functional", "functional", "matmul")
        if how == "matmul" and self.program.layers[name].bias is None:
            how = "module"
        return Step("layer", name, how)

    def activation(self, *, in_place: bool) -> Step:
        ways = ["relu", "tanh", "gelu"]
        if in_place:  # what comes before does not need its output
            ways += ["relu_", "F.relu_", "mul_", "add_"]
        return Step("act", how=self.pick(*ways))

    def block(self, shape: tuple[int, ...], d_out: int, *, norms: bool) -> list[Step]:
        """A linear layer, and what follows one."""
        steps = [self.call(shape[-1], d_out)]
        if norms and self.chance(0.4):
            name = self.name("norm")
            of_batch = self.chance(0.5)
            kind = nn.BatchNorm1d if of_batch else nn.LayerNorm
            self.program.layers[name] = kind(d_out, eps=EPS)
            steps.append(Step("norm", name))
        if self.chance(0.8):
            steps.append(self.activation(in_place=True))
        return steps

    def section(
        self, shape: tuple[int, ...], depth: int, *, outermost: bool = False, norms: bool = True
    ) -> tuple[list[Step], tuple[int, ...]]:
        """Steps on ``[N, …, d]``, of which the outermost may change d."""
        steps: list[Step] = []
        for index in range(depth):
            d = shape[-1]
            d_out = self.number(2, 5) if outermost else d
            kinds = ["block"] * 4
            if outermost:
                kinds += ["residual", "residual_", "checkpoint", "views", "no_grad"]
                kinds += 4 * ["attention", "mha", "sequence_first"] if len(shape) == 2 else []
            kind = self.pick(*kinds) if index or not outermost else "block"
            if kind == "block":
                steps += self.block(shape, d_out, norms=norms)
                shape = (*shape[:-1], d_out)
            elif kind == "attention":
                name = self.name("attention")
                self.program.layers[name] = OwnAttention(d)
                steps.append(Step("norm", name))
            elif kind == "mha":
                name = self.name("mha")
                self.program.layers[name] = nn.MultiheadAttention(d, 1, batch_first=True)
                steps.append(Step("mha", name))
            else:
                inside = kind in {"residual", "residual_"} and norms
                body, _ = self.section(shape, 1, norms=inside)
                if kind == "residual_":  # what the sum overwrites must not be needed
                    body = [*body, self.call(d, d)]
                how = self.pick("reentrant", "plain") if kind == "checkpoint" else ""
                steps.append(Step(kind, how=how, body=tuple(body)))
        return steps, shape

    def image(self, shape: tuple[int, ...]) -> tuple[list[Step], tuple[int, ...]]:
        """Convolutions, then a way to rows."""
        steps: list[Step] = []
        channels, height, width = shape
        for _ in range(self.number(1, 2)):
            groups = self.pick(1, 1, 2) if channels % 2 == 0 else 1
            size, stride, dilation = self.pick(1, 2, 3), self.pick(1, 1, 2), self.pick(1, 1, 2)
            padding = self.pick(0, 1)
            extent = dilation * (size - 1)
            if min(height, width) + 2 * padding <= extent:
                size, extent = 1, 0
            d_out = self.pick(2, 4)
            conv = nn.Conv2d(channels, d_out, size, stride, padding, dilation, groups)
            name = self.name("conv")
            self.program.layers[name] = conv
            how = self.pick("module", "module", "module", "functional")
            steps.append(Step("layer", name, how))
            channels = d_out
            height = (height + 2 * padding - extent - 1) // stride + 1
            width = (width + 2 * padding - extent - 1) // stride + 1
            if self.chance(0.5):
                name = self.name("norm")
                kinds = nn.BatchNorm2d(channels, eps=EPS), nn.GroupNorm(1, channels, eps=EPS)
                self.program.layers[name] = self.pick(*kinds)
                steps.append(Step("norm", name))
            steps.append(self.activation(in_place=True))
        match self.pick("pool", "flatten", "channels_last"):
            case "pool":
                return [*steps, Step("pool", how="image")], (channels,)
            case "flatten":
                return [*steps, Step("flatten")], (channels * height * width,)
        return [*steps, Step("channels_last")], (height, width, channels)


def build(program: Program) -> tuple[Net, Tensor, Tensor]:
    """The module in float64 with weights of a sensible size, and a batch; float32 holds them."""
    generator = torch.Generator().manual_seed(program.seed)
    net = Net(program).double()
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / fan_in**0.5 + (parameter.ndim == 1) * 0.5)
        for name, buffer in net.named_buffers():
            if buffer.is_floating_point():
                noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
                buffer.copy_(noise + 0.5 * ("var" in name))
    net.float().double()
    for name in program.frozen:
        for parameter in net.layers[name].parameters():
            parameter.requires_grad_(False)
    net.train(program.training)
    shape = (program.num_samples, *program.shape)
    inputs = torch.randn(shape, generator=generator).double()
    if program.loss == "mse":
        targets = torch.randn(len(inputs), NUM_CLASSES, generator=generator).double()
    else:
        targets = torch.randint(NUM_CLASSES, (len(inputs),), generator=generator)
    return net, inputs, targets
