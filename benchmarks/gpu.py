"""``python -m benchmarks.gpu [--device cuda]``: what a snapshot costs on a GPU, as JSON.

Of each network: a training step, the same step with a snapshot, whose eigenvalues are taken where
condexp takes them or on the CPU, and eigenvalues alone, on either side. It ends within two minutes
and needs torch, torchvision, h5py and hydra alone.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tests.gpu.bare import allow_bare_machine

SECONDS = 100.0  # of all networks together
ROUNDS = 9


@dataclass(frozen=True)
class Case:
    """A network and its batch.

    Attributes:
        name: For the table.
        build: Makes it.
        batch: Number of images.
        size: Their height and width.
        num_classes: Number of classes.
    """

    name: str
    build: Callable[[], Any]
    batch: int
    size: int
    num_classes: int


def cases(*, tiny: bool) -> list[Case]:
    """Return the networks.

    Args:
        tiny: Whether sizes are those of a dry run.

    Returns:
        The cases.
    """
    from torchvision import models

    from benchmarks.networks import resnet, vgg

    few = 2 if tiny else 128
    small = [
        Case("ResNet-20", resnet(8 if tiny else 20).build, few, 32, 10),
        Case("ResNet-56", resnet(14 if tiny else 56).build, few, 32, 10),
        Case("VGG-16-BN", vgg().build, few, 32, 10),
    ]
    large = 32 if tiny else 224
    vit = partial(models.VisionTransformer, large, 16, 12, 12, 768, 3072)
    if tiny:
        vit = partial(models.VisionTransformer, large, 16, 1, 2, 16, 32)
    resnet50 = models.resnet18 if tiny else models.resnet50
    return [
        *small,
        Case("ResNet-50", resnet50, min(few, 64), large, 1000),
        Case("ViT-B/16", vit, min(few, 32), large, 1000),
    ]


def measure(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Time a network.

    Args:
        case: Which one.
        device: Where.
        seconds: After which no further round begins.

    Returns:
        Seconds of each way, and what memory it took.
    """
    import torch
    from torch import nn

    from condexp.analysis.layers.calls import PassMode
    from condexp.analysis.options import AnalysisOptions
    from condexp.analysis.statistics.hooks import MeasurementHooks

    on_gpu = torch.device(device).type == "cuda"
    torch.manual_seed(0)
    model = case.build().to(device)
    inputs = torch.randn(case.batch, 3, case.size, case.size, device=device)
    targets = torch.randint(case.num_classes, (case.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()

    def measured(precision: str) -> None:
        options = AnalysisOptions(precision=precision)  # type: ignore[arg-type]
        about: Any = {"denominator": float(case.batch), "keep_weights": False}
        with MeasurementHooks(model, options, pass_mode=PassMode.ONE_PASS, **about) as hooks:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
        for record in hooks.snapshot().records:
            assert record.kfac is not None
            record.kfac.kappa(0.5)
        optimizer.step()

    def timed(way: Callable[[], None]) -> float:
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def solved_by_the_cpu(precision: str) -> None:
        # The products stay where they are: they ask by another name of this function.
        with mock.patch("condexp.analysis.linalg.eigen.has_fast_float64", return_value=False):
            measured(precision)

    ways: dict[str, Callable[[], None]] = {"step": step}
    for precision in ("float32", "auto"):
        ways[f"snapshot {precision}"] = partial(measured, precision)
        ways[f"snapshot {precision}, solved by the CPU"] = partial(solved_by_the_cpu, precision)
    until = time.perf_counter() + seconds
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    while len(times["step"]) < ROUNDS and (not times["step"] or time.perf_counter() < until):
        for name, way in ways.items():
            times[name].append(timed(way))
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    return {"seconds": times, "solve": _solving(device), "peak_bytes": memory}


def _solving(device: str) -> dict[str, float]:
    """Return seconds of the eigenvalues of eight matrices, on the device and on the CPU."""
    import torch

    found = {}
    for side in (64, 256, 576):
        rows = torch.randn(8, side, 2 * side, dtype=torch.float64)
        matrices = rows @ rows.mT
        for where in dict.fromkeys((device, "cpu")):
            given = matrices.to(where)
            torch.linalg.eigvalsh(given)
            start = time.perf_counter()
            torch.linalg.eigvalsh(given).cpu()
            found[f"{where} {side}"] = time.perf_counter() - start
    return found


def main(argv: list[str] | None = None) -> int:
    """Time all networks, print a table and write the JSON.

    Args:
        argv: Arguments; those of the process where None.

    Returns:
        The exit code: 2 where the device is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: tiny sizes")
    parser.add_argument("--json", type=Path, help="default: benchmarks/gpu-NAME.json")
    given = parser.parse_args(argv)
    allow_bare_machine()
    import torch

    from benchmarks.timing import conditions

    on_gpu = given.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        print("no GPU is seen by torch; --device cpu is a dry run", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    results: dict[str, Any] = {"device": name, "conditions": conditions(), "networks": {}}
    chosen = cases(tiny=not on_gpu)
    for case in chosen:
        found = measure(case, given.device, SECONDS / len(chosen) if on_gpu else 0.0)
        results["networks"][case.name] = found
        best = {way: min(times) for way, times in found["seconds"].items()}
        step = best.pop("step")
        beyond = ", ".join(f"{way} {(s - step) / step:.2f} steps" for way, s in best.items())
        print(f"{case.name:10} step {1e3 * step:8.2f} ms; beyond it: {beyond}", flush=True)
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = given.json or Path(__file__).parent / f"gpu-{stem}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
