"""The rounding error that all gradients of a pass inherit from the loss's gradient."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from condexp.analysis.layers.calls import ForwardPass
from condexp.analysis.layers.samples import tensors_in
from condexp.analysis.linalg.precision import summable

_LIKE = 1e-2  # relative difference up to which a gradient is of a loss's form


class LossRounding:
    """Relative rounding of the loss's gradient with respect to the model's output.

    The gradient of cross-entropy, p − 1_y, is rounded to eps absolutely, however small training
    makes it; back-propagation is linear in it, so all layers inherit the relative error. It is
    measured: against the loss's float64 gradient at the same outputs where that is at hand; else
    against p − 1_y, or σ(f) − t, where the gradient is seen to be of that form. A squared error's
    gradient, the difference of two floats, has no such error.
    """

    def __init__(self) -> None:
        self._rounding = self._remaining = 0.0
        self._expected: Tensor | None = None
        self._zero_sums = True
        self.scale: float | None = None
        """1/D of the pass, where every sample's gradient is seen to be s·(p − 1_y), or 0."""

    @property
    def has_zero_sums(self) -> bool:
        """Whether each row of the gradient sums to 0 in exact arithmetic, as a softmax's does."""
        return self._zero_sums and self._remaining > 0

    def expect(
        self, loss_fn: Callable[[Any, Any], Tensor], outputs: object, targets: object
    ) -> None:
        """Compute the float64 gradient of a loss, for the pass under way.

        Args:
            loss_fn: The loss, which is left as it is; one that fails in float64 is not used.
            outputs: Outputs of the model, before the loss is taken of them.
            targets: Targets.
        """
        self._expected = None
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return
        # In this order: MPS has no float64.
        exact = outputs.detach().cpu().double().clone().requires_grad_()
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                twin: Callable[[Any, Any], Tensor] = loss_fn
                if isinstance(loss_fn, nn.Module):
                    twin = copy.deepcopy(loss_fn).cpu().double()
                loss = twin(exact, _in_float64(targets))
                self._expected = torch.autograd.grad(loss, exact)[0]
        except Exception:
            return

    def output_hook(self, outputs: Tensor, current: ForwardPass) -> Callable[[Tensor], None]:
        """Return a hook for the gradient of the model's outputs, which adds one pass.

        Args:
            outputs: Outputs of the model in that pass.
            current: The pass, whose D is known when the gradient comes.
        """
        # Half precision is promoted: torch takes a softmax in float32 and rounds afterwards. A
        # copy, for the loss may work in place.
        values = summable(outputs.detach()).clone()

        def hook(grad: Tensor) -> None:
            with torch.no_grad():
                gradient = summable(grad.detach()).cpu().double()
                expected, self._expected = self._expected, None
                eps, of = torch.finfo(values.dtype).eps, values.cpu().double()
                if expected is not None and expected.shape == gradient.shape:
                    form = _Form.of(of, expected, torch.finfo(torch.float64).eps)
                    hidden = _Form.of(of, gradient, eps) if form.bounded else None
                    form = hidden or replace(form, error=gradient - expected, exact=expected)
                else:
                    form = _Form.of(of, gradient, eps)
                    self.scale = form.scale
                self._add(form.error, form.exact, current)
                self._zero_sums = self._zero_sums and form.zero_sums

        return hook

    def _add(self, error: Tensor, exact: Tensor, current: ForwardPass) -> None:
        self._rounding += float((current.denominator * error).square().sum())
        self._remaining += float((current.denominator * exact).square().sum())

    def merge(self, other: "LossRounding") -> None:
        """Add the passes of another process, of the same loss.

        Args:
            other: Sums over the other's passes.
        """
        self._rounding += other._rounding
        self._remaining += other._remaining
        self._zero_sums = self._zero_sums and other._zero_sums

    def relative_square(self) -> float:
        """Return Σ‖e‖² / Σ‖g‖², the square of the relative error, over all passes."""
        known = self._remaining > 0 and math.isfinite(self._rounding + self._remaining)
        return self._rounding / self._remaining if known else 0.0


def logits_of(outputs: object) -> Tensor | None:
    """Find what the loss is taken of in what a model returned.

    Args:
        outputs: A tensor; or a mapping with ``logits``, as Hugging Face's outputs are; or a mapping
            or a tuple with one tensor [N, ...] that carries a gradient.

    Returns:
        The tensor; None where there is none, or more than one.
    """
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return cast("Tensor", outputs["logits"])
    found = [t for t in tensors_in(outputs) if t.ndim > 0 and t.requires_grad]
    return found[0] if len(found) == 1 else None


def _in_float64(nested: Any) -> Any:
    if isinstance(nested, Tensor):
        on_cpu = nested.detach().cpu()
        return on_cpu.double() if on_cpu.is_floating_point() else on_cpu
    if isinstance(nested, dict):
        return {key: _in_float64(part) for key, part in nested.items()}
    if isinstance(nested, tuple | list):
        return type(nested)(_in_float64(part) for part in nested)
    return nested


@dataclass(frozen=True, eq=False)
class _Form:
    """What a gradient is seen to be.

    Args:
        error: Its rounding; 0 where its form is not known.
        exact: Its exact value.
        zero_sums: Whether each row sums to 0 exactly.
        scale: s of s·(p − 1_y), the same for all samples that count; None where there is none.
        bounded: Whether the error is a bound on what the backward pass behind f will round.
    """

    error: Tensor
    exact: Tensor
    zero_sums: bool = False
    scale: float | None = None
    bounded: bool = False

    @classmethod
    def of(cls, outputs: Tensor, grad: Tensor, eps: float) -> "_Form":
        """Recognise a gradient ∂L/∂f, float64, as it was computed at these outputs f.

        Args:
            outputs: The outputs.
            grad: The gradient.
            eps: Rounding unit of the outputs.

        Returns:
            The form.
        """
        if grad.numel() == 0:
            return cls(grad, grad)
        if outputs.ndim >= 2 and outputs.shape[1] >= 2 and bool(grad.isfinite().all()):
            # torch has the classes second; language models have them last.
            for classes in dict.fromkeys((1, outputs.ndim - 1)):
                f = outputs.movedim(classes, -1).flatten(0, -2)
                g = grad.movedim(classes, -1).flatten(0, -2)
                if (softmax := _softmax(f, g, eps)) is not None:
                    return softmax
                if (log_softmax := _log_softmax(f, g, eps)) is not None:
                    return log_softmax
        if (exact := _sigmoid(outputs, grad, eps)) is not None:
            return cls(grad - exact, exact)
        return cls(torch.zeros_like(grad), grad)


def _softmax(f: Tensor, g: Tensor, eps: float) -> _Form | None:
    """Return the form of rows s·(p − 1_y), s ≥ 0; None for others.

    s comes from the classes other than y, whose entries s·p_c are small and have all their digits.
    """
    p = f.softmax(1)
    y = g.argmin(1, keepdim=True)
    others = torch.ones_like(g, dtype=torch.bool).scatter_(1, y, value=False)
    of_others = (p * others).sum(1, keepdim=True)
    s = (g * others).sum(1, keepdim=True) / of_others.clamp(min=1e-300)
    exact = s * torch.where(others, p, -of_others)
    unlike = ((g - exact) * others).abs().sum(1)
    off = (g - exact).gather(1, y).squeeze(1).abs()
    size = (g * others).abs().sum(1)
    scales = s.squeeze(1)
    fits = (unlike <= _LIKE * size) & (off <= 8 * eps * scales + _LIKE * size) & (scales >= 0)
    counted = scales[scales > 0]
    if not bool(fits.all()) or len(counted) == 0:
        return None
    scale = float(counted.median())
    one = bool(((counted - scale).abs() <= _LIKE * scale).all())
    return _Form(g - exact, exact, zero_sums=True, scale=scale if one else None)


def _log_softmax(f: Tensor, g: Tensor, eps: float) -> _Form | None:
    """Return a bound on the error, and the value, of what a log-softmax makes of rows −s·1_y."""
    normalised = f.logsumexp(1).abs().max() <= 64 * max(eps, 2.0**-23)  # f itself is float32
    if not bool(normalised) or int((g != 0).sum(1).max()) > 1:
        return None
    s = -g.sum(1, keepdim=True)
    at_y = (g != 0).double()
    return _Form(eps * s * at_y, s * (f.exp() - at_y), bounded=True)


def _sigmoid(f: Tensor, g: Tensor, eps: float) -> Tensor | None:
    """Return the exact value of entries s·(σ(f) − t) with t ∈ {0, 1}, one s for all; else None."""
    q = torch.where(g < 0, -(-f).sigmoid(), f.sigmoid())
    power = float((q * q).sum())
    s = float((q * g).sum()) / power if power > 0 else 0.0
    if s <= 0:
        return None
    exact = s * q
    fits = (g - exact).abs() <= _LIKE * exact.abs() + 8 * eps * s
    return exact if bool(fits.all()) else None
