"""Programs run by hand in float64: every use of a weight with its rows, nothing of the library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import reference
from tests.analysis.programs import Net, OwnAttention, Program, Step


@dataclass
class Use:
    """One use of a weight.

    Args:
        inputs: Rows a, ``[groups, N, T, d_in]``.
        zero: What was added to its output, ``[N, T, d_out]``, to have its gradient.
    """

    inputs: Tensor
    zero: Tensor
    grads: Tensor | None = None


@dataclass
class Truth:
    """All rows of one weight, of all its uses.

    Args:
        weight: The parameter.
        inputs: Rows a, ``[groups, N, T, d_in]``, uses and positions after one another.
        grads: Rows g = ∂ℓ_n/∂h, ``[groups, N, T, d_out / groups]``.
        denominator: D.
    """

    weight: Tensor
    inputs: Tensor
    grads: Tensor
    denominator: float

    @property
    def sample_gradients(self) -> Tensor:
        """G_n as rows, ``[N, d_out · d_in]``."""
        return torch.einsum("gnti,gntj->ngij", self.grads, self.inputs).flatten(1)

    @property
    def gradient(self) -> Tensor:
        """∂L/∂W, ``[groups, d_out / groups, d_in]``."""
        return torch.einsum("gnti,gntj->gij", self.grads, self.inputs) / self.denominator

    @property
    def input_matrices(self) -> Tensor:
        return torch.stack([reference.mean_second_moment(rows) for rows in self.inputs])

    @property
    def grad_output_matrices(self) -> Tensor:
        return torch.stack([reference.sum_second_moment(rows) for rows in self.grads])


@dataclass
class Explicit:
    """One pass of a program over a batch, by hand.

    Args:
        net: The module, for its weights and buffers.
        training: Whether batch normalisations take the batch's statistics.
    """

    net: Net
    training: bool
    uses: dict[int, list[Use]] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)

    def run(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        for step in steps:
            x = self.step(step, x)
        return x

    def step(self, step: Step, x: Tensor) -> Tensor:
        layer: Any = self.net.layers[step.layer] if step.layer else None
        match step.kind:
            case "layer" if isinstance(layer, nn.Conv2d):
                return self.conv(layer, x)
            case "layer":
                return self.linear(layer.weight, layer.bias, x)
            case "act":
                return act(step.how, x)
            case "norm" if isinstance(layer, OwnAttention):
                return self.own_attention(layer, x)
            case "norm":
                return self.norm(layer, x)
            case "mha":
                return self.mha(layer, x)
            case "pool" | "flatten" | "channels_last":
                return moved(step, x)
        return self.section(step, x)

    def section(self, step: Step, x: Tensor) -> Tensor:
        match step.kind:
            case "residual" | "residual_":
                return x + self.run(step.body, x)
            case "checkpoint" | "sequence_first":  # how it is computed; not what
                return self.run(step.body, x)
            case "views":
                return self.run(step.body, x) + 0.5 * self.run(step.body, x.flip(-1))
            case "no_grad":
                aside = Explicit(self.net, self.training)  # whose rows have no gradient
                return x + aside.run(step.body, x.detach()).detach()
        raise ValueError(step.kind)

    def note(self, weight: Tensor, inputs: Tensor, zero: Tensor) -> None:
        self.weights[id(weight)] = weight
        self.uses.setdefault(id(weight), []).append(Use(inputs.detach(), zero))

    def linear(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        zero = torch.zeros(*rows.shape[:2], len(weight), dtype=x.dtype, requires_grad=True)
        self.note(weight, rows[None], zero)
        out = torch.einsum("ntd,od->nto", rows, weight.detach()) + zero
        out = out if bias is None else out + bias.detach()
        return out.reshape(*x.shape[:-1], len(weight))

    def conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        way = conv.stride, conv.padding, conv.dilation, conv.groups
        patches = reference.conv_patches(x, conv.kernel_size, *way, "zeros")
        weight = conv.weight.detach()
        out = F.conv2d(x, weight, conv.bias, *way)  # type: ignore[arg-type]
        zero = torch.zeros(len(x), out[0, 0].numel(), len(weight), dtype=x.dtype)
        self.note(conv.weight, patches, zero.requires_grad_())
        return out + zero.mT.reshape(out.shape)

    def norm(self, layer: Any, x: Tensor) -> Tensor:
        weight: Tensor = layer.weight.detach()
        bias: Tensor = layer.bias.detach()
        if isinstance(layer, nn.LayerNorm):
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
            return scaled * weight + bias
        image = isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)
        x = torch.einsum("nc...->n...c", x) if image else x
        if isinstance(layer, nn.GroupNorm):
            parts = x.reshape(len(x), -1, layer.num_groups, x.shape[-1] // layer.num_groups)
            centred = parts - parts.mean((1, 3), keepdim=True)
            scaled = centred / (centred.square().mean((1, 3), keepdim=True) + layer.eps).sqrt()
            scaled = scaled.reshape(x.shape)
        else:
            over = tuple(range(x.ndim - 1))
            mean = x.mean(over) if self.training else layer.running_mean
            var = (x - mean).square().mean(over) if self.training else layer.running_var
            scaled = (x - mean) / (var + layer.eps).sqrt()
        out = scaled * weight + bias
        back: Tensor = torch.einsum("n...c->nc...", out) if image else out
        return back

    def own_attention(self, layer: OwnAttention, x: Tensor) -> Tensor:
        q, k, v = (self.linear(m.weight, m.bias, x) for m in (layer.q, layer.k, layer.v))
        return self.linear(layer.o.weight, layer.o.bias, attended(q, k, v))

    def mha(self, layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
        packed = self.linear(layer.in_proj_weight, layer.in_proj_bias, x)
        out = layer.out_proj
        return self.linear(out.weight, out.bias, attended(*packed.chunk(3, -1)))

    def rows(self, loss: Tensor, factor: float) -> dict[int, tuple[Tensor, Tensor]]:
        """Rows a and g = factor · ∂loss/∂h of each weight, for one pass."""
        every = [use for uses in self.uses.values() for use in uses]
        zeros = [use.zero for use in every]
        for use, grad in zip(every, torch.autograd.grad(loss, zeros), strict=True):
            use.grads = factor * grad
        found = {}
        for key, uses in self.uses.items():
            inputs = torch.cat([use.inputs for use in uses], 2)
            grads = torch.cat([use.grads for use in uses if use.grads is not None], 1)
            blocks = grads.tensor_split(len(inputs), dim=2)  # groups
            found[key] = inputs, torch.stack(blocks)
        return found


def moved(step: Step, x: Tensor) -> Tensor:
    if step.kind == "flatten":
        return x.reshape(len(x), -1)
    if step.kind == "channels_last":
        return torch.einsum("nchw->nhwc", x)
    between = range(1, x.ndim - 1) if step.how == "rows" else range(2, x.ndim)
    return x.mean(tuple(between)) if x.ndim > 2 else x


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nqd,nkd->nqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("nqk,nkd->nqd", scores.softmax(2), v)


def act(how: str, x: Tensor) -> Tensor:
    match how:
        case "relu" | "relu_" | "F.relu_":
            return x.clamp(min=0)
        case "tanh":
            return 2 * torch.sigmoid(2 * x) - 1
        case "gelu":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        case "mul_":
            return x * 0.7
        case "add_":
            return x + 0.3
    raise ValueError(how)


def loss_of(program: Program, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples, written out."""
    if program.loss == "mse":
        return (outputs - targets).square().mean()
    chosen = outputs.gather(1, targets[:, None])[:, 0]
    return (outputs.logsumexp(1) - chosen).mean()


def truth(
    program: Program, net: Net, inputs: Tensor, targets: Tensor, num_batches: int = 1
) -> dict[int, Truth]:
    """The rows of every weight that is used with gradients, by the parameter's id."""
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
    weights: dict[int, Tensor] = {}
    for x, y in zip(inputs.chunk(num_batches), targets.chunk(num_batches), strict=True):
        explicit = Explicit(net, program.training)
        loss = loss_of(program, explicit.run(program.steps, x), y)
        for key, rows in explicit.rows(loss, len(x)).items():
            parts.setdefault(key, []).append(rows)
        weights |= explicit.weights
    return {
        key: Truth(
            weights[key],
            torch.cat([a for a, _ in rows], 1),
            torch.cat([g for _, g in rows], 1),
            len(inputs),
        )
        for key, rows in parts.items()
    }


def sample_gradients(
    program: Program, net: Net, inputs: Tensor, targets: Tensor, weight: Tensor
) -> Tensor:
    """G_n of the module itself, one backward pass a sample; samples must not mix."""
    rows = []
    for n in range(len(inputs)):
        loss = loss_of(program, net(inputs[n : n + 1].clone()), targets[n : n + 1])
        loss.backward()  # type: ignore[no-untyped-call]  # re-entrant checkpoints refuse grad()
        assert weight.grad is not None
        rows.append(weight.grad.flatten().clone())
        net.zero_grad()
    return torch.stack(rows)
