"""Cotangents that are back-propagated instead of the data's loss: of drawn labels, or of all."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condexp.analysis.loss.denominator import as_module
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import SAMPLE_MATRICES, FisherType
from condexp.errors import InputError

PlainLoss = nn.CrossEntropyLoss | nn.MSELoss


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Cotangents of a model's outputs, made one at a time.

    Args:
        count: Number of cotangents.
        make: Function from an index to ``∂ℓ_n/∂f``, of the outputs' shape, without the 1/N.
    """

    count: int
    make: Callable[[int], Tensor]


class FisherLabels:
    """Labels of the model's own, whose loss is back-propagated (Kunstner et al. 2019, §2).

    ``mc`` draws them: S signals, each over √S. ``exact`` takes all: the columns of a square root of
    the loss's Hessian with respect to the outputs, so that Σ over signals is the Gauss–Newton
    matrix. Cross-entropy's Hessian is diag(p) − ppᵀ, whose triangular root has C − 1 columns;
    that of ``nn.MSELoss`` is 2/C for a mean over C outputs, 2 for a sum.

    Args:
        loss_fn: ``nn.CrossEntropyLoss`` or ``nn.MSELoss``, or torch's functions of these.
        options: ``fisher_type``, ``mc_samples`` and ``seed`` are read.

    Raises:
        InputError: If the loss is another one, or weighs or smooths its labels.
    """

    def __init__(self, loss_fn: object, options: AnalysisOptions) -> None:
        self._loss_fn = _plain(loss_fn, options.fisher_type)
        self._type, self._num_drawn = options.fisher_type, options.mc_samples
        # Its own generator, so that nobody else's random numbers change.
        self._generator, self._seed = torch.Generator(), options.seed

    @torch.no_grad()
    def cotangents(
        self, outputs: object, targets: object, num_samples: int, number: int = 0
    ) -> Cotangents:
        """Return what to back-propagate after one forward pass.

        Args:
            outputs: Outputs f of the model: ``[N, C]``; for ``mc`` and ``MSELoss`` also
                ``[N, C, ...]``.
            targets: Targets of the data; a sample whose target cross-entropy ignores gets zeros.
            num_samples: Number N of samples.
            number: Index of the batch, from 0; each batch draws its own labels.

        Returns:
            The cotangents: a function of the seed and the batch, whichever process takes it.

        Raises:
            InputError: If the outputs are not one row a sample.
        """
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != num_samples:
            given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(
                f"fisher_type={str(self._type)!r} needs outputs [N, C] with a row for each of the "
                f"{num_samples} samples, the model returns {given}: use fisher_type='empirical'."
            )
        self._generator.manual_seed(self._seed)
        if number:
            seeds = torch.randint(2**62, (number,), generator=self._generator)
            self._generator.manual_seed(int(seeds[-1]))
        exact, f = self._type is FisherType.EXACT, outputs.detach().cpu().double()
        if isinstance(self._loss_fn, nn.MSELoss):
            made = self._squared(f, self._loss_fn.reduction, exact=exact)
        else:
            counted = _counted(self._loss_fn, targets, f)
            made = self._all_classes(f, counted) if exact else self._drawn_classes(f, counted)
        dtype, device = outputs.dtype, outputs.device
        # In this order: MPS has no float64.
        return Cotangents(made.count, lambda number: made.make(number).to(dtype).to(device))

    def _squared(self, f: Tensor, reduction: str, *, exact: bool) -> Cotangents:
        num_outputs = f[0].numel()
        scale = math.sqrt(2 / num_outputs if reduction == "mean" else 2.0)
        if exact:
            ones = scale * torch.eye(num_outputs, dtype=torch.float64)
            return Cotangents(num_outputs, lambda c: ones[c].expand(len(f), -1).reshape(f.shape))
        noise = torch.randn(
            self._num_drawn, *f.shape, generator=self._generator, dtype=torch.float64
        )
        return Cotangents(len(noise), lambda s: scale / math.sqrt(len(noise)) * noise[s])

    def _drawn_classes(self, f: Tensor, counted: Tensor) -> Cotangents:
        p = f.softmax(1)
        rows = (
            p.movedim(1, -1).flatten(0, -2).nan_to_num(1.0)
        )  # of a diverged net, any label is drawn
        drawn = torch.multinomial(
            rows, self._num_drawn, replacement=True, generator=self._generator
        )
        labels = drawn.T.reshape(-1, len(f), 1, *f.shape[2:])

        def make(number: int) -> Tensor:
            others = p.scatter(1, labels[number], 0.0)
            # p − 1 as the sum of the others keeps the digits of a sure prediction.
            grad = others.scatter(1, labels[number], -others.sum(1, keepdim=True))
            return counted * grad / math.sqrt(self._num_drawn)

        return Cotangents(self._num_drawn, make)

    @staticmethod
    def _all_classes(f: Tensor, counted: Tensor) -> Cotangents:
        if f.ndim != 2:
            raise InputError(
                f"fisher_type='exact' needs outputs [N, C], the model returns {list(f.shape)}: "
                "every position would need its own back-propagations; use fisher_type='mc'."
            )
        p = f.softmax(1)
        # Sums of p_j over j ≥ k: sums of positive numbers, exact to the last digits.
        tails = p.flip(1).cumsum(1).flip(1)

        def make(k: int) -> Tensor:
            p_k, tail, rest = p[:, k], tails[:, k], tails[:, k + 1]
            # 0 where all further classes have probability 0.
            diagonal = torch.where(tail == 0, 0.0, p_k / tail * rest).sqrt()
            below = torch.where(rest[:, None] == 0, 0.0, p[:, k + 1 :] / rest[:, None])
            column = torch.zeros_like(p)
            column[:, k], column[:, k + 1 :] = diagonal, -below * diagonal[:, None]
            return counted * column

        return Cotangents(p.shape[1] - 1, make)


def refuse_batch_statistics(model: nn.Module, options: AnalysisOptions) -> None:
    """Refuse labels of the model's own where a batch normalisation mixes the samples.

    One drawn label a sample still gives ``grad_output`` and ``kfac`` as the data's labels do, with
    the paths through the batch statistics.

    Args:
        model: In the modes in which it is measured.
        options: ``fisher_type`` and ``matrices`` are read.

    Raises:
        InputError: For ``exact``, and for ``fisher`` and ``ekfac`` with ``mc``, in training mode.
    """
    exact = options.fisher_type is FisherType.EXACT
    if options.fisher_type is FisherType.EMPIRICAL or not (
        exact or options.wants(*SAMPLE_MATRICES)
    ):
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            asked = [str(m) for m in SAMPLE_MATRICES if options.wants(m)]
            what = "" if exact else f"matrix {asked[-1]!r} with "
            raise InputError(
                f"{what}fisher_type={str(options.fisher_type)!r} is not defined while "
                f"{name or type(module).__name__!r} normalises by batch statistics: each sample's "
                "output depends on all samples, so batched back-propagation mixes them; measure "
                "in eval mode (model.eval()) or use fisher_type='empirical'."
            )


def _plain(loss_fn: object, fisher_type: FisherType) -> PlainLoss:
    module = as_module(loss_fn)
    if isinstance(module, nn.MSELoss):
        return module
    smooth = isinstance(module, nn.CrossEntropyLoss) and module.label_smoothing > 0
    if isinstance(module, nn.CrossEntropyLoss) and module.weight is None and not smooth:
        return module
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    raise InputError(
        f"fisher_type={str(fisher_type)!r} takes labels from the model's own distribution, which "
        "only a plain CrossEntropyLoss (no weight, no label smoothing) or MSELoss gives, got "
        f"{name}: use fisher_type='empirical'."
    )


def _counted(loss_fn: nn.CrossEntropyLoss, targets: object, f: Tensor) -> Tensor:
    """Return 1 for each target that counts, 0 where it is ignored, to broadcast with f."""
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        return (targets.detach().cpu() != loss_fn.ignore_index).double().unsqueeze(1)
    return torch.ones(1, dtype=torch.float64).expand([1] * f.ndim)
