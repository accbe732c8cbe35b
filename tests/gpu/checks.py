"""What has to hold on a GPU: numbers, certificates, and that nothing is changed by looking.

Plain functions of a device, so that they run without pytest too, and on the CPU as a dry run.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.linalg.eigen import descending_eigenvalues

LOSS = nn.CrossEntropyLoss()
MATRICES = ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad")
FRACTIONS = (0.2, 0.5, 0.8)


def net(device: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small network of convolutions, normalisation and linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 9, 20),
        nn.Tanh(),
        nn.Linear(20, 5),
    )
    return model.to(device, dtype)


def batch(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images and classes, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 3, 8, 8, generator=generator)
    targets = torch.randint(5, (40,), generator=generator)
    return inputs.to(device, dtype), targets.to(device)


def measured(device: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Analyse the small network."""
    model = net(device, dtype).eval()
    return condexp.analyze(model, LOSS, *batch(device, dtype), matrices=MATRICES, **options)


def intervals_hold_those_of_the_cpu(device: str) -> None:
    """Every κ's interval meets that of the function in float64 on the CPU."""
    truth = measured("cpu", torch.float64, precision="float64")
    for precision in ("float32", "auto", "float64"):
        found = measured(device, precision=precision, network_precision="float64")
        for layer in truth:
            for matrix in MATRICES:
                one, other = getattr(found[layer], matrix), getattr(truth[layer], matrix)
                # float32 products err by 8·√n·eps of the largest entry at most.
                assert abs(one.lambda_max / other.lambda_max - 1) < 1e-4, (layer, matrix)
                for p in FRACTIONS:
                    low, high = one.kappa_interval(p)
                    least, most = other.kappa_interval(p)
                    assert low <= most * (1 + 1e-9), (layer, matrix, p)
                    assert least <= high * (1 + 1e-9), (layer, matrix, p)


def factors_are_those_of_autograd(device: str) -> None:
    """Σ_x and Σ_∇h of the last layer, one backward pass a sample, in float64 on the CPU."""
    found = measured(device, torch.float64, precision="float64")["8"]
    model, (inputs, targets) = net("cpu", torch.float64).eval(), batch("cpu", torch.float64)
    hidden = model[:8](inputs).detach()
    gradients = []
    for row, target in zip(hidden, targets, strict=True):
        output = model[8](row).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(LOSS(output[None], target[None]), output)
        gradients.append(gradient)
    grads = torch.stack(gradients)
    for spectrum, rows in ((found.input, hidden), (found.grad_output, grads)):
        moment = rows.mT @ rows / len(rows)
        expected = torch.linalg.eigvalsh(moment).flip(0).clamp(min=0)
        torch.testing.assert_close(spectrum.eigenvalues, expected, rtol=1e-9, atol=1e-12)


def certificates_hold(device: str) -> None:
    """The rows reproduce every weight's gradient, also in training mode."""
    model = net(device).train()
    found = condexp.analyze(model, LOSS, *batch(device))
    for record in found.records:
        assert record.incomplete is None, record.incomplete
        assert record.gradient_residual < 1e-3, (record.info.name, record.gradient_residual)


def training_keeps_its_bits(device: str) -> None:
    """Steps that are measured end at the same weights, buffers and random states."""

    def trained(*, measures: bool) -> tuple[dict[str, Tensor], Tensor]:
        model = net(device).train()
        model.insert(7, nn.Dropout(0.2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        inputs, targets = batch(device)
        torch.manual_seed(5)
        for _ in range(4):
            optimizer.zero_grad()
            if measures:
                with condexp.Recorder(model) as recorder:
                    loss = LOSS(model(inputs), targets)
                    loss.backward()
                recorder.snapshot()
            else:
                loss = LOSS(model(inputs), targets)
                loss.backward()
            optimizer.step()
        on_device = torch.device(device).type == "cuda"
        state = torch.cuda.get_rng_state() if on_device else torch.get_rng_state()
        return copy.deepcopy(model.state_dict()), state

    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        plain, measured_too = trained(measures=False), trained(measures=True)
    finally:
        torch.backends.cudnn.deterministic = deterministic
    for name, value in plain[0].items():
        assert torch.equal(value, measured_too[0][name]), name
    assert torch.equal(plain[1], measured_too[1])


def products_are_exact_whatever_is_set(device: str) -> None:
    """TF32 stays out of the products, and the user's settings are as they were."""
    exact = measured(device, torch.float64, precision="float32")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        found = measured(device, torch.float64, precision="float32")
        set_now = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert set_now == (True, True)
    for layer in exact:
        assert found[layer].input.lambda_max == exact[layer].input.lambda_max, layer


def eigenvalues_are_believed_only_if_certified(device: str) -> None:
    """torch's batched solver on the device, against LAPACK: what is certified is right."""
    generator = torch.Generator().manual_seed(2)
    for side in (16, 64, 200, 600):
        factor = torch.randn(6, side, side // 2, generator=generator, dtype=torch.float64)
        matrices = factor @ factor.mT  # half of the eigenvalues are 0, as in a snapshot
        try:
            values = torch.linalg.eigvalsh(matrices.to(device)).cpu().flip(-1)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue  # the CPU takes over
        expected = descending_eigenvalues(matrices)
        norms = matrices.norm(dim=(-2, -1))
        traces = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
        fits = (values.norm(dim=-1) - norms).abs() <= 1e-12 * side * norms
        fits &= (values.sum(-1) - traces).abs() <= 1e-12 * side**1.5 * norms
        wrong = (values - expected).abs().amax(-1) > 1e-9 * norms
        assert not (fits & wrong).any(), side


CHECKS: tuple[Callable[[str], None], ...] = (
    factors_are_those_of_autograd,
    intervals_hold_those_of_the_cpu,
    certificates_hold,
    training_keeps_its_bits,
    products_are_exact_whatever_is_set,
    eigenvalues_are_believed_only_if_certified,
)
