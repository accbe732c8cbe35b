"""Measurement of a forward and backward pass that the user runs."""

from collections.abc import Iterable
from typing import Unpack

from torch import nn

from condexp.analysis.options import AnalysisChoices, AnalysisOptions, documents_options
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.errors import InputError


@documents_options
class Recorder(MeasurementHooks):
    """Measure the layers of a model during a forward and backward pass of the user's own.

    Each layer's ``input`` is reduced to its second moment as soon as the layer ran, its
    ``grad_output`` as soon as the gradient passes by. No activation is kept but where there are
    fewer rows than features, and for ``fisher`` until the layer's own gradient has come. The pass
    itself is unchanged, bit for bit. Only passes with gradients enabled are recorded; several are
    merged (Σ sums / Σ counts), but for ``fisher``, which takes one. The weights are those of the
    first recorded pass. BatchNorm runs in the model's own mode.

    >>> import torch, condexp
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    >>> with condexp.Recorder(model, matrices=("input", "grad_output")) as recorder:
    ...     loss = model(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).sum(1).mean()
    ...     loss.backward()
    >>> record = recorder.snapshot()["0"]
    >>> record.input.eigenvalues, record.input.kappa(1.0)
    (tensor([4.5000, 0.5000], dtype=torch.float64), 9.0)
    >>> record.grad_output.lambda_max  # ∂ℓ_n/∂h_n = 1 for each sample
    1.0

    Args:
        model: The network; call it (not its parts) inside the ``with``. N, the number of samples,
            is the first dimension of the first tensor it is given.
        options: Options to start from, or the names of the matrices alone; None for the defaults.
        denominator: Number D by which the loss divides its sum over samples: N for a mean, 1 for a
            sum, the number of valid targets where some are ignored, k·N for parts of a batch whose
            loss is divided by their number k, N / s under an AMP loss scale s (the weight
            gradient's measures are of the scaled loss then). None: read off the gradient of a
            cross-entropy with respect to the outputs, and N for every other loss. May be set
            between passes.
        learning_rate: For ``effective_lr``: lr / (1 − momentum) of SGD; without it that is NaN.
        num_samples: N of each pass, where the first dimension of what the model is called with does
            not tell.
        loss_fn: The loss, if it is one of torch's modules: a sum has D = 1.
        **choices: Any of the options below, by name. ``fisher_type`` can only be ``empirical``, and
            ``network_precision`` only ``as_trained``.

    Raises:
        InputError: If an option is invalid or matches no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        options: AnalysisOptions | Iterable[str] | None = None,
        *,
        denominator: float | None = None,
        learning_rate: float | None = None,
        loss_fn: object | None = None,
        num_samples: int | None = None,
        **choices: Unpack[AnalysisChoices],
    ) -> None:
        chosen = AnalysisOptions.of(
            options, choices, ("denominator", "learning_rate", "loss_fn", "num_samples")
        )
        if not chosen.is_empirical:
            raise InputError(
                f"fisher_type={str(chosen.fisher_type)!r} needs backward passes of its own, and a "
                "Recorder has the user's alone: use condexp.analyze, or fisher_type='empirical'."
            )
        if chosen.wants_curvature:
            raise InputError(
                "matrices 'hessian' and 'ggn' need passes of their own, and a Recorder has the "
                "user's alone: use condexp.analyze."
            )
        if chosen.in_float64:
            raise InputError(
                "network_precision='float64' needs a pass of its own through a float64 copy of the "
                "network, and a Recorder has the user's alone: use condexp.analyze, or record a "
                "pass through copy.deepcopy(model).double()."
            )
        if denominator is None and getattr(loss_fn, "reduction", None) == "sum":
            denominator = 1.0
        super().__init__(
            model,
            chosen,
            denominator=denominator,
            learning_rate=learning_rate,
            num_samples=num_samples,
        )
