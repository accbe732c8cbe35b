"""Listen to the user's own forward and backward pass, by hooks inside a ``with``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from condexp.analysis.layers import select_modules
from condexp.analysis.options import DEFAULT_MATRICES, KAPPA_P, AnalysisOptions
from condexp.analysis.root import RootNoise
from condexp.analysis.rows import Layer, count_samples
from condexp.analysis.snapshot import BnMode, Snapshot
from condexp.analysis.tape import Pass, Tape
from condexp.errors import InputError


class Recorder:
    """Measure the layers of a model during a forward and backward pass of the user's own.

    Each layer's ``input`` is reduced to its second moment as soon as the layer ran, its
    ``grad_output`` as soon as the gradient passes by; no activation is kept. The pass itself is
    unchanged, bit for bit. Only passes with gradients enabled are recorded; several are merged
    (Σ sums / Σ counts). The weights are those of the first recorded pass. BatchNorm runs in the
    model's own mode.

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
        fisher_type: Whose labels are back-propagated.
        layers: Names, globs or aliases; None for all.
        conv_input: ``patches`` or ``channels``.
        precision: ``auto``, ``float32`` or ``float64``. Under ``auto`` the first of several passes,
            or of several uses of a module, keeps float32's floor: give ``float64`` there.
        seed: Seed of drawn labels.
        exclude: Names, globs or aliases to leave out.
        center: Subtract means.
        bias: Append 1 to the inputs of layers with a bias.
        kappa_p: The fractions p that ``auto`` answers for.
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
        denominator: float | None = None,
        learning_rate: float | None = None,
        loss_fn: object | None = None,
    ) -> None:
        choices: dict[str, Any] = {  # AnalysisOptions turns plain strings into its own types
            "matrices": matrices,
            "fisher_type": fisher_type,
            "layers": ("all",) if layers is None else layers,
            "exclude": exclude,
            "conv_input": conv_input,
            "center": center,
            "bias": bias,
            "precision": precision,
            "kappa_p": kappa_p,
            "seed": seed,
        }
        self.options = AnalysisOptions(**choices)
        self.model = model
        self.denominator = denominator
        self._learning_rate = learning_rate
        self._root_noise = None if loss_fn is None else RootNoise(loss_fn)
        self._streaming = False
        self._modules, _ = select_modules(model, self.options)
        self._handles: list[RemovableHandle] = []
        self._tapes: dict[str, Tape] = {}  # in the order of the first calls
        self._pass: Pass | None = None
        self._num_samples = 0
        self._batch_statistics: set[bool] = set()

    @classmethod
    def from_options(
        cls,
        model: nn.Module,
        options: AnalysisOptions,
        *,
        denominator: float | None = None,
        learning_rate: float | None = None,
        loss_fn: object | None = None,
        streaming: bool = False,
    ) -> Self:
        """Make a recorder from validated options.

        Args:
            model: The network.
            options: What to measure.
            denominator: See the class.
            learning_rate: See the class.
            loss_fn: See the class.
            streaming: Several passes will follow, so ``auto`` takes float64 products at once.

        Returns:
            The recorder, not yet listening.
        """
        choices: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(options)}
        del choices["float64"]  # found by tracing, not the user's choice
        recorder = cls(model, **choices, denominator=denominator, loss_fn=loss_fn)
        recorder.options, recorder._learning_rate = options, learning_rate
        recorder._streaming = streaming
        return recorder

    @property
    def weights(self) -> list[Tensor]:
        """The weights that are measured and trained, each once."""
        weights = {id(module.weight): module.weight for module in self._modules.values()}
        return [weight for weight in weights.values() if weight.requires_grad]

    def __enter__(self) -> Self:
        self._refuse_frozen()
        self._keep(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        if self._root_noise is not None:
            self._keep(self.model.register_forward_hook(self._end))
        for name, module in self._modules.items():
            self._keep(module.register_forward_hook(self._on_forward(name), with_kwargs=True))
            if module.weight.requires_grad:
                self._on_grad(module.weight, self._on_weight_grad(name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def snapshot(self) -> Snapshot:
        """Return what was measured so far.

        Returns:
            The records of all layers that were called, in the order of their first call.

        Raises:
            InputError: If nothing was recorded, or a gradient that was asked for did not arrive.
        """
        if not self._tapes:
            raise InputError(
                "nothing was recorded: call the model on at least one sample inside the with "
                "block, with gradients enabled, so that it calls the selected layers "
                f"({', '.join(self._modules)})."
            )
        excess = 0.0 if self._root_noise is None else self._root_noise.excess()
        records = (tape.record(self._learning_rate, excess) for tape in self._tapes.values())
        return Snapshot(
            tuple(record for record in records if record is not None),
            self._num_samples,
            BnMode.of(self._batch_statistics),
        )

    def _keep(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)

    def _on_grad(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
        self._keep(tensor.register_hook(hook))  # type: ignore[no-untyped-call]

    def _refuse_frozen(self) -> None:
        for name, module in self._modules.items():
            if self.options.needs_gradients and not module.weight.requires_grad:
                raise InputError(
                    f"layer {name!r} is frozen (its weight has requires_grad=False), so it has no "
                    f"gradient: leave it out with exclude=[{name!r}], or ask for "
                    "matrices=('input', 'weight') only."
                )

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        number = 0 if self._pass is None else self._pass.number + 1
        num_samples = count_samples((args, kwargs))
        denominator = float(num_samples) if self.denominator is None else self.denominator
        self._pass = Pass(number, num_samples, denominator)
        self._num_samples += num_samples
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                self._batch_statistics.add(module.training or module.running_mean is None)

    def _end(self, _model: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        noise, current = self._root_noise, self._pass
        if noise and current and isinstance(output, Tensor) and output.requires_grad:
            self._on_grad(output, noise.listener(output, current.denominator))

    def _on_forward(self, name: str) -> Callable[..., None]:
        def hook(module: Layer, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if self._pass is None:
                raise InputError(
                    f"layer {name!r} was called on its own: call the recorded model itself, "
                    "which tells the number of samples."
                )
            if self._pass.num_samples == 0:
                return
            if name not in self._tapes:
                self._tapes[name] = Tape(name, module, self.options, streaming=self._streaming)
            tape, current = self._tapes[name], self._pass
            with torch.no_grad():
                tape.forward((args[0] if args else kwargs["input"]).detach(), output, current)
            if tape.listens_to_gradients:
                # On the tensor, not on the module: an in-place activation may follow.
                self._on_grad(output, partial(tape.backward, current=current))

        return hook

    def _on_weight_grad(self, name: str) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if self._pass is not None and name in self._tapes:
                self._tapes[name].weight_backward(grad, self._pass)

        return hook
