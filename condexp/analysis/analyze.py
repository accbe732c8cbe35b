"""Measurement of a model in one call, which leaves the model exactly as found."""

from collections.abc import Iterable
from typing import Any, Unpack

from torch import Tensor, nn

from condexp.analysis.any_batch import analyze_any
from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.curvature.measure import Vectors
from condexp.analysis.layers.compiled import without_compiler
from condexp.analysis.linalg.curvature_spectrum import CurvatureSpectrum
from condexp.analysis.measurement import LossFunction, Measurement
from condexp.analysis.options import AnalysisChoices, AnalysisOptions, documents_options
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import CURVATURE_MATRICES, Matrix, SpectrumStatus
from condexp.errors import InputError

IN_BATCH: Any = object()
"""The targets of an analysis that is given a whole batch."""


@documents_options
def analyze(
    model: nn.Module,
    loss_fn: LossFunction | None,
    inputs: Any,
    targets: Any = IN_BATCH,
    options: AnalysisOptions | Iterable[str] | None = None,
    *,
    denominator: float | None = None,
    learning_rate: float | None = None,
    **choices: Unpack[AnalysisChoices],
) -> Snapshot:
    """Measure the curvature factors of every linear map and convolution on one batch.

    With a = the layer's input rows, h = W a + b and g = ∂ℓ_n/∂h: ``input`` is Σ_x = E[a aᵀ] over
    samples and positions, ``grad_output`` is Σ_∇h = E_n[Σ_t g gᵀ], ``kfac`` is Σ_x ⊗ Σ_∇h, which
    approximates ``fisher``, E_n[vec(G_n) vec(G_n)ᵀ] with G_n = Σ_t g aᵀ (Huang et al. 2020, §3;
    Eschenhagen et al. 2023, KFAC-expand). Modes, buffers, gradients and all random states are left
    as found, also after an exception; BatchNorm runs in the model's own mode.

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
        loss_fn: Function ``loss_fn(outputs, targets)`` that returns a scalar; for a whole batch see
            :func:`condexp.analysis.any_batch.analyze_any`, where None is a model's own loss.
        inputs: The inputs ``[N, ...]``; or, without targets, the batch: a pair of both, a tuple, a
            mapping (``model(**batch)``) or a dataclass (``model(batch)``).
        targets: Targets of the batch, as the loss takes them.
        options: Options to start from, or the names of the matrices alone; None for the defaults.
        denominator: Number D by which the loss divides its sum over samples; None: see
            :func:`condexp.analysis.loss.denominator.loss_denominator`.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).
        **choices: Any of the options below, by name: ``matrices=("input", "fisher")``.

    Returns:
        The snapshot.

    Raises:
        InputError: If an option, a layer name, the inputs or the loss are not usable.
        ArithmeticError: If a spectrum is unreliable: rounding exceeded the noise floor.
    """
    chosen = AnalysisOptions.of(options, choices, ("denominator", "learning_rate"))
    model = without_compiler(model)
    pair = isinstance(inputs, tuple | list) and len(inputs) == 2 and isinstance(inputs[0], Tensor)
    if targets is IN_BATCH and pair and loss_fn is not None:
        inputs, targets = inputs
    if targets is IN_BATCH:
        snapshot = analyze_any(model, loss_fn, inputs, chosen, denominator, learning_rate)
    elif loss_fn is None:
        raise InputError("loss_fn is None: that is for a batch whose model returns its loss.")
    else:
        batches = [(inputs, targets)]
        measurement = Measurement(model, loss_fn, batches, chosen, learning_rate, denominator)
        snapshot = measurement.measure()
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
    start: Vectors | None = None,
) -> Snapshot:
    """Measure a model on several batches, merged by Σ sums / Σ counts.

    The result is that of one big batch unless samples mix, as they do in BatchNorm's training mode.
    A spectrum that turns out unreliable keeps its status: a measurement never stops a training.

    Args:
        model: As for :func:`analyze`.
        loss_fn: As for :func:`analyze`.
        batches: Pairs of inputs ``[N_b, ...]`` and targets.
        options: What to measure.
        learning_rate: As for :func:`analyze`.
        communicator: The processes that take turns at the batches, which all of them have.
        start: Eigenvectors of an earlier snapshot, from which those of ``hessian`` and ``ggn`` are
            searched.

    Returns:
        The snapshot of all batches together; of several processes, rank 0 has it.

    Raises:
        InputError: If there is no batch, and as for :func:`analyze`.
    """
    measurement = Measurement(
        model, loss_fn, batches, options, learning_rate, communicator=communicator, start=start
    )
    return measurement.measure()


def _refuse_unreliable(snapshot: Snapshot) -> None:
    named = [
        (f"{str(matrix)!r} of layer {record.info.name!r}", getattr(record, matrix))
        for record in snapshot.records
        for matrix in Matrix
    ]
    of_network = (Matrix.FISHER, *CURVATURE_MATRICES)
    named += [
        (f"{str(matrix)!r} of all layers", getattr(snapshot, matrix)) for matrix in of_network
    ]
    for what, spectrum in named:
        if isinstance(spectrum, CurvatureSpectrum) and spectrum.status is SpectrumStatus.UNRELIABLE:
            raise ArithmeticError(
                f"{what} is no symmetric matrix by its products: the network or the loss has an "
                "operation that torch differentiates wrongly the second time (a backward of its "
                "own that detaches?), or rounding exceeds it: try network_precision='float64'."
            )
        if spectrum is not None and spectrum.status is SpectrumStatus.UNRELIABLE:
            raise ArithmeticError(
                f"the spectrum of {what} is unreliable: an eigenvalue lies further below 0 than "
                "rounding explains; use precision='float64'."
            )
