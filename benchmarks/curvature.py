"""The Hessian of one network by condexp, hessian-eigenthings and PyHessian: values and time.

Each in one process, in turn, in float32 and eval mode (PyHessian knows no other), on one batch of
the digits after some steps of training. What is true is known by a dense matrix in float64. Of the
others, those that are installed: ``pip install hessian-eigenthings pyhessian``.
"""

import argparse
import copy
import importlib.metadata
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.timing import conditions, rounds
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.options import AnalysisOptions
from tests.from_conf import build

LOSS = nn.CrossEntropyLoss()
TOP, TOLERANCE, BATCH = 5, 1e-3, 128
PRODUCTS = 128  # for the trace: 8 random vectors of 16 products are condexp's, and give a density
RESULT = Path(__file__).with_name("curvature.json")


@dataclass(frozen=True)
class Found:
    """What one tool says of a network.

    Attributes:
        tool: Its name and version, and what it did.
        eigenvalues: The largest ones, descending.
        trace: The trace.
        trace_error: What it says of the trace's error: half the width of a 99 % interval of
            condexp's, a standard error of hessian-eigenthings'; None where it says nothing.
        eigenvalue_error: Largest distance of the eigenvalues from the true ones, over the largest.
        trace_distance: Distance of the trace from the true one, relative.
        seconds: Of each call.
    """

    tool: str
    eigenvalues: list[float]
    trace: float
    trace_error: float | None
    eigenvalue_error: float
    trace_distance: float
    seconds: list[float]


Answer = tuple[list[float], float, float | None]
Way = Callable[[], Answer]


def trained(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network after 50 steps of gradient descent on 512 digits, and a batch of these.

    Args:
        name: ``mlp`` (one hidden layer of 32 units) or ``cnn`` (three layers with BatchNorm).
    """
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:512] / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target[:512])
    settings = {"depth": 2, "width": 32, "norm": "none"} if name == "mlp" else {"depth": 3}
    model = build(name, (1, 8, 8), 10, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        LOSS(model(images), labels).backward()
        optimizer.step()
    return model.eval(), images[:BATCH], labels[:BATCH]


def dense(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the Hessian of all parameters by torch.func, float64."""
    model, inputs = copy.deepcopy(model).double(), inputs.double()
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = zip(names, torch.split(vector, sizes), shapes, strict=True)
        own = {name: part.view(shape) for name, part, shape in parts}
        value: Tensor = LOSS(torch.func.functional_call(model, own, (inputs,)), labels)
        return value

    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    gradient = torch.func.grad(loss)
    rows = [
        torch.func.vmap(lambda v: torch.func.jvp(gradient, (start,), (v,))[1])(part)
        for part in torch.split(torch.eye(len(start), dtype=torch.float64), 64)
    ]
    return torch.cat(rows)


def ours(model: nn.Module, inputs: Tensor, labels: Tensor) -> Way:
    """Return condexp's way: eigenvalues, trace, norm, negative share and density at once."""
    options = AnalysisOptions(
        ("hessian",),  # type: ignore[arg-type]
        top_k=TOP,
        eigenvalue_tolerance=TOLERANCE,
        num_random_vectors=8,
        num_lanczos_steps=PRODUCTS // 8,
        layer_blocks=False,
    )

    def way() -> Answer:
        found = analyze_batches(model, LOSS, [(inputs, labels)], options).hessian
        assert found is not None
        return found.eigenvalues.tolist(), found.trace, found.trace_error

    return way


def eigenthings(model: nn.Module, inputs: Tensor, labels: Tensor) -> Way:
    """Return hessian-eigenthings' way: Lanczos, and Hutch++ with as many products as ours."""
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.algorithms.trace import trace
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    operator = HessianOperator(model, [(inputs, labels)], supervised_loss(LOSS))

    def way() -> Answer:
        # Its default of 2 k steps has not converged; it takes no tolerance to stop at.
        top = lanczos(operator, k=TOP, max_iter=40, which="LA", seed=0)
        whole = trace(operator, num_matvecs=PRODUCTS, seed=0)
        return top.eigenvalues.tolist(), whole.estimate, whole.stderr

    return way


def pyhessian(model: nn.Module, inputs: Tensor, labels: Tensor) -> Way:
    """Return PyHessian's way: power iteration, and Hutchinson's estimate.

    Its density is left out: it calls ``torch.eig``, which torch has no more.
    """
    from pyhessian import hessian

    def way() -> Answer:
        torch.manual_seed(0)
        operator = hessian(model, LOSS, data=(inputs, labels), cuda=False)
        top, _ = operator.eigenvalues(maxIter=200, tol=TOLERANCE, top_n=TOP)
        parts = operator.trace(maxIter=PRODUCTS, tol=TOLERANCE)
        model.zero_grad()
        return top, sum(parts) / len(parts), None

    return way


WAYS = {"condexp": ours, "hessian-eigenthings": eigenthings, "pyhessian": pyhessian}


def compare(name: str, num_rounds: int) -> list[Found]:
    """Ask every tool that is installed for the Hessian of a network.

    Args:
        name: See :func:`trained`.
        num_rounds: How often each is timed, in turn.

    Returns:
        What each says, and how far that is from the truth.
    """
    network = trained(name)
    values = torch.linalg.eigvalsh(dense(*network)).flip(0)
    ways: dict[str, Callable[[], None]] = {}
    answers: dict[str, Answer] = {}

    def keep(tool: str, way: Way) -> None:
        with redirect_stdout(StringIO()):
            answers[tool] = way()

    for tool, make in WAYS.items():
        try:
            version = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            print(f"{tool} is not installed: pip install {tool}")
            continue
        title = f"{tool} {version}"
        ways[title] = partial(keep, title, make(*network))
    seconds = rounds(ways, num_rounds)
    found = []
    for tool, (top, trace, error) in answers.items():
        off = (torch.tensor(top, dtype=torch.float64) - values[:TOP]).abs().max() / values[0]
        distance = abs(trace / float(values.sum()) - 1)
        found.append(Found(tool, top, trace, error, float(off), distance, list(seconds[tool])))
    print(f"{name}: {len(values)} weights, λ = {values[:TOP].tolist()}, trace {values.sum():.6g}")
    for each in found:
        print(
            f"  {each.tool:30} {min(each.seconds):8.3f} s   eigenvalues to "
            f"{each.eigenvalue_error:.1e}, trace to {each.trace_distance:.1e}"
        )
    return found


def main() -> None:
    """Compare the tools on both networks, and keep the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each (default 5)")
    parser.add_argument("--json", type=Path, default=RESULT, help=f"default: {RESULT.name}")
    given = parser.parse_args()
    networks = {name: compare(name, given.rounds) for name in ("mlp", "cnn")}
    results = {name: [asdict(each) for each in found] for name, found in networks.items()}
    content = {"conditions": conditions(), "networks": results}
    given.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
