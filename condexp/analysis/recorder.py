"""Listen to the user's own forward and backward pass."""

from collections.abc import Iterable, Sequence

from torch import nn

from condexp.analysis.options import AnalysisOptions
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import DEFAULT_MATRICES, KAPPA_P, FisherType
from condexp.errors import InputError


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
        matrices: See :class:`AnalysisOptions`, also for the next arguments.
        fisher_type: ``empirical``: the loss is the user's own. Other labels need passes of their
            own: :func:`condexp.analyze`.
        layers: Names, globs or aliases; None for all.
        conv_input: ``patches`` or ``channels``.
        precision: ``auto``, ``float32`` or ``float64``. Under ``auto`` the first of several passes,
            or of several uses of a module, keeps float32's floor: give ``float64`` there.
        seed: Seed of drawn labels.
        exclude: Names, globs or aliases to leave out.
        center: Subtract means.
        bias: Append 1 to the inputs of layers with a bias.
        kappa_p: The fractions p that ``auto`` answers for.
        mc_samples: Labels that ``mc`` draws for each sample.
        memory_limit: Bytes that ``fisher`` may work in; None: no limit.
        denominator: D, what the loss divides its sum over samples by; None: N, a mean. 1 for a sum;
            the number of valid targets where some are ignored; N / s under an AMP loss scale s (the
            weight gradient's measures are of the scaled loss then). May be set between passes.
        learning_rate: For ``effective_lr``: lr / (1 − momentum) of SGD; None: NaN.
        loss_fn: The loss, if one of torch's: its gradient's rounding then counts as noise.

    Raises:
        InputError: If an option is invalid or matches no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        matrices: Iterable[str] = DEFAULT_MATRICES,
        fisher_type: str = "empirical",
        layers: Iterable[str] | None = None,
        conv_input: str = "patches",
        precision: str = "auto",
        seed: int = 0,
        *,
        exclude: Iterable[str] = (),
        center: bool = False,
        bias: bool = False,
        kappa_p: Sequence[float] = KAPPA_P,
        mc_samples: int = 1,
        memory_limit: int | None = None,
        denominator: float | None = None,
        learning_rate: float | None = None,
        loss_fn: object | None = None,
    ) -> None:
        options = AnalysisOptions.given(
            matrices=matrices,
            fisher_type=fisher_type,
            layers=layers,
            exclude=exclude,
            conv_input=conv_input,
            center=center,
            bias=bias,
            precision=precision,
            kappa_p=kappa_p,
            seed=seed,
            mc_samples=mc_samples,
            memory_limit=memory_limit,
        )
        if options.fisher_type is not FisherType.EMPIRICAL:
            raise InputError(
                f"fisher_type={fisher_type!r} needs backward passes of its own, and a Recorder has "
                "the user's alone: use condexp.analyze, or fisher_type='empirical'."
            )
        super().__init__(
            model,
            options,
            denominator=denominator,
            learning_rate=learning_rate,
            loss_fn=loss_fn,
        )
