"""One call that measures a model and leaves it exactly as found."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.measurement import LossFunction, Measurement
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import DEFAULT_MATRICES, KAPPA_P, Matrix, SpectrumStatus


def analyze(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Any,
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
) -> Snapshot:
    """Measure the curvature factors of every Linear and Conv2d layer on one batch.

    With a = the layer's input rows, h = W a + b and g = ∂ℓ_n/∂h: ``input`` is Σ_x = E[a aᵀ] over
    samples and positions, ``grad_output`` is Σ_∇h = E_n[Σ_t g gᵀ], ``kfac`` is Σ_x ⊗ Σ_∇h, which
    approximates ``fisher``, E_n[vec(G_n) vec(G_n)ᵀ] with G_n = Σ_t g aᵀ (Huang et al. 2020, §3;
    Eschenhagen et al. 2023, KFAC-expand). Modes, buffers, gradients and
    all random states are left as found, also after an exception; BatchNorm runs in the model's own
    mode.

    >>> import torch, condexp
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> inputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 1.0]])
    >>> snapshot = condexp.analyze(
    ...     model, torch.nn.CrossEntropyLoss(), inputs, torch.tensor([0, 1, 1, 0])
    ... )
    >>> snapshot.layers
    ('0', '2')
    >>> snapshot["0"].input.eigenvalues
    tensor([2.0000, 0.5000], dtype=torch.float64)
    >>> snapshot["0"].input.kappa(1.0)
    4.0
    >>> len(snapshot["0"].kfac)
    6

    Args:
        model: Any module that maps ``inputs`` to what ``loss_fn`` takes.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar.
        inputs: The batch ``[N, ...]``.
        targets: What the loss is given.
        matrices: Which of ``input``, ``grad_output``, ``kfac``, ``fisher``, ``weight``,
            ``weight_grad``.
        fisher_type: Whose labels are back-propagated for ``grad_output``, ``kfac`` and ``fisher``.
            ``empirical``: the data's; ``mc``: drawn from the model's softmax (for ``nn.MSELoss``
            from the normal distribution around its output); ``exact``: all, which gives the
            Gauss–Newton matrix. The weights' own gradients are of the data's loss always.
        layers: Names, globs or the aliases ``first``, ``last_linear``, ``all``; None for all.
        conv_input: Rows of a convolution's input: ``patches`` or ``channels``.
        precision: ``auto``, ``float32`` or ``float64`` products.
        seed: Seed of the labels that ``mc`` draws.
        exclude: Names, globs or aliases to leave out.
        center: Subtract the means from ``input`` and ``grad_output``.
        bias: Append 1 to the inputs of layers with a bias.
        kappa_p: The fractions p that ``auto`` answers for.
        mc_samples: Labels that ``mc`` draws for each sample.
        memory_limit: Bytes that ``fisher`` may keep and work in; None: no limit. Layers are taken
            in groups that fit.
        denominator: D, what the loss divides its sum over samples by; None: see
            :func:`condexp.analysis.loss.denominator.loss_denominator`.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).

    Returns:
        The snapshot.

    Raises:
        InputError: If an option, a layer name, the inputs or the loss are not usable.
        ArithmeticError: If a spectrum is unreliable: rounding exceeded the noise floor.
    """
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
    batches = [(inputs, targets)]
    snapshot = Measurement(model, loss_fn, batches, options, learning_rate, denominator).measure()
    _refuse_unreliable(snapshot)
    return snapshot


def analyze_batches(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[tuple[Tensor, Any]],
    options: AnalysisOptions,
    *,
    learning_rate: float | None = None,
    communicator: Communicator = SINGLE_PROCESS,
) -> Snapshot:
    """Measure a model on several batches, merged by Σ sums / Σ counts.

    Equal to one big batch wherever the samples do not mix, as they do in BatchNorm's training mode.
    A spectrum that turns out unreliable keeps its status: measuring in passing stops no training.

    Args:
        model: As for :func:`analyze`.
        loss_fn: As for :func:`analyze`.
        batches: Pairs of inputs ``[N_b, ...]`` and targets.
        options: What to measure.
        learning_rate: As for :func:`analyze`.
        communicator: The processes that take turns at the batches, which all of them have.

    Returns:
        The snapshot of all batches together; of several processes, rank 0 has it.

    Raises:
        InputError: If there is no batch, and as for :func:`analyze`.
    """
    return Measurement(
        model, loss_fn, batches, options, learning_rate, communicator=communicator
    ).measure()


def _refuse_unreliable(snapshot: Snapshot) -> None:
    named = [
        (f"{str(matrix)!r} of layer {record.info.name!r}", getattr(record, matrix))
        for record in snapshot.records
        for matrix in Matrix
    ]
    for what, spectrum in [*named, ("'fisher' of all layers", snapshot.fisher)]:
        if spectrum is not None and spectrum.status is SpectrumStatus.UNRELIABLE:
            raise ArithmeticError(
                f"the spectrum of {what} is unreliable: an eigenvalue lies further below 0 than "
                "rounding explains; use precision='float64'."
            )
