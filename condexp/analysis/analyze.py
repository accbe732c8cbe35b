"""One call that measures a model and leaves it exactly as found."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from condexp.analysis.labels import loss_denominator
from condexp.analysis.options import DEFAULT_MATRICES, KAPPA_P, AnalysisOptions
from condexp.analysis.recorder import Recorder
from condexp.analysis.snapshot import LayerSnapshot, Snapshot
from condexp.analysis.state import left_as_found
from condexp.errors import InputError
from condexp.linalg.auto import Precision
from condexp.linalg.spectrum import Status

LossFunction = Callable[[Any, Any], Tensor]


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
    denominator: float | None = None,
    learning_rate: float | None = None,
) -> Snapshot:
    """Measure the curvature factors of every Linear and Conv2d layer on one batch.

    With a = the layer's input rows, h = W a + b and g = ∂ℓ_n/∂h: ``input`` is Σ_x = E[a aᵀ] over
    samples and positions, ``grad_output`` is Σ_∇h = E_n[Σ_t g gᵀ], ``kfac`` is Σ_x ⊗ Σ_∇h
    (Huang et al. 2020, §3; Eschenhagen et al. 2023, KFAC-expand). Modes, buffers, gradients and
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
        matrices: Which of ``input``, ``grad_output``, ``kfac``, ``weight``, ``weight_grad``.
        fisher_type: ``empirical``: the labels of the data.
        layers: Names, globs or the aliases ``first``, ``last_linear``, ``all``; None for all.
        conv_input: Rows of a convolution's input: ``patches`` or ``channels``.
        precision: ``auto``, ``float32`` or ``float64`` products.
        seed: Seed of drawn labels (``empirical`` draws none).
        exclude: Names, globs or aliases to leave out.
        center: Subtract the means from ``input`` and ``grad_output``.
        bias: Append 1 to the inputs of layers with a bias.
        kappa_p: The fractions p that ``auto`` answers for.
        denominator: D, what the loss divides its sum over samples by; None: see
            :func:`condexp.analysis.labels.loss_denominator`.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).

    Returns:
        The snapshot.

    Raises:
        InputError: If an option, a layer name, the inputs or the loss are not usable.
        ArithmeticError: If a spectrum is unreliable: rounding exceeded the noise floor.
    """
    recorder = Recorder(
        model,
        matrices,
        fisher_type,
        layers,
        conv_input,
        precision,
        seed,
        exclude=exclude,
        center=center,
        bias=bias,
        kappa_p=kappa_p,
    )
    snapshot = _measure(
        model,
        loss_fn,
        [(inputs, targets)],
        recorder.options,
        learning_rate=learning_rate,
        denominator=denominator,
    )
    _refuse_unreliable(snapshot)
    return snapshot


def analyze_batches(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[tuple[Tensor, Any]],
    options: AnalysisOptions,
    *,
    learning_rate: float | None = None,
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

    Returns:
        The snapshot of all batches together.

    Raises:
        InputError: If there is no batch, and as for :func:`analyze`.
    """
    return _measure(model, loss_fn, batches, options, learning_rate=learning_rate)


def _measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[tuple[Tensor, Any]],
    options: AnalysisOptions,
    *,
    learning_rate: float | None,
    denominator: float | None = None,
) -> Snapshot:
    # Batches that can be gone through only once are streamed, so they are never asked for again.
    streaming = not isinstance(batches, Sequence) or len(batches) > 1
    recorder = Recorder.from_options(
        model, options, learning_rate=learning_rate, loss_fn=loss_fn, streaming=streaming
    )
    snapshot = _record(recorder, loss_fn, batches, denominator)
    reused = tuple(record.info.name for record in snapshot.records if _is_too_coarse(record))
    if streaming or options.precision is not Precision.AUTO or not reused:
        return snapshot
    recorder = Recorder.from_options(
        model, replace(options, float64=reused), learning_rate=learning_rate, loss_fn=loss_fn
    )
    return _record(recorder, loss_fn, batches, denominator)


def _is_too_coarse(record: LayerSnapshot) -> bool:
    """Return whether a layer used again has a first portion in float32, which nothing retook."""
    factors = (record.input, record.grad_output, record.kfac)
    return record.info.uses > 1 and any(f and f.dtype == torch.float32 for f in factors)


def _record(
    recorder: Recorder,
    loss_fn: LossFunction,
    batches: Iterable[tuple[Tensor, Any]],
    denominator: float | None,
) -> Snapshot:
    num_batches = 0
    with left_as_found(recorder.model), torch.inference_mode(False), torch.enable_grad(), recorder:
        for inputs, targets in batches:
            _pass(recorder, loss_fn, inputs, targets, denominator)
            num_batches += 1
    if num_batches == 0:
        raise InputError("there is no batch to analyse: give at least one (inputs, targets).")
    return recorder.snapshot()


def _pass(
    recorder: Recorder,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Any,
    denominator: float | None,
) -> None:
    if not isinstance(inputs, Tensor) or inputs.ndim == 0 or len(inputs) == 0:
        raise InputError(
            f"inputs must be a tensor [N, ...] with at least one sample, got {_described(inputs)}; "
            "for other inputs put a Recorder around your own forward and backward pass."
        )
    if denominator is None:
        denominator = loss_denominator(loss_fn, targets, len(inputs))
    recorder.denominator = denominator
    # A copy, because the first operation may work in place.
    loss = loss_fn(recorder.model(inputs.clone()), targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError(
            f"loss_fn must return a scalar tensor, got {_described(loss)}; "
            "take the mean over the samples."
        )
    if loss.requires_grad and recorder.weights:
        # Unlike backward(), this touches no .grad and goes only as far as is needed.
        torch.autograd.grad(loss, recorder.weights, allow_unused=True)


def _refuse_unreliable(snapshot: Snapshot) -> None:
    for record in snapshot.records:
        for matrix in ("input", "grad_output", "kfac", "weight", "weight_grad"):
            spectrum = getattr(record, matrix)
            if spectrum is not None and spectrum.status is Status.UNRELIABLE:
                raise ArithmeticError(
                    f"the spectrum of {matrix!r} of layer {record.info.name!r} is unreliable: "
                    "an eigenvalue lies further below 0 than rounding explains; "
                    "use precision='float64'."
                )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
