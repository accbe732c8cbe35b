"""What the paper's tables cost: floating-point operations, counted on the networks themselves.

``python -m benchmarks.cost`` prints the table of docs/cost.md. A training step is counted as
torch runs it; an evaluation is the forward pass over training and test set, each epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.from_conf import build

BATCH = 2
RATES = {"2 cores, 0.1 TFLOP/s": 1e11, "3 TFLOP/s": 3e12, "10 TFLOP/s": 1e13}
SECONDS_PER_LAUNCH = 5e-6
LAUNCHES_PER_LAYER = 15  # convolution, normalisation, activation and update, both ways


@dataclass(frozen=True)
class Row:
    """Runs of one depth.

    Attributes:
        table: Which table.
        depth: Of the network.
        num_runs: Nets × seeds.
        shape: Of an image.
        num_train: Images of an epoch.
        num_test: Images of the test set.
        epochs: Epochs.
        batch_size: Images of a step.
        build: Makes the network of a ``depth``.
    """

    table: str
    depth: int
    num_runs: int
    shape: tuple[int, int, int]
    num_train: int
    num_test: int
    epochs: int
    batch_size: int
    build: Callable[..., nn.Module]


def cifar(table: str, num_classes: int, depth: int) -> Row:
    """Return the runs of one depth of table 1 or 2: four nets, five seeds."""
    shape = (3, 32, 32)
    make = partial(build, "resnet", shape, num_classes)
    return Row(table, depth, 20, shape, 50_000, 10_000, 160, 128, make)


def imagenet(depth: int) -> Row:
    """Return the runs of one depth of table 3: plain and LastBN, two dropouts, three seeds."""
    shape = (3, 224, 224)
    make = partial(build, "resnet_imagenet", shape, 1000)
    return Row("table3", depth, 12, shape, 1_281_167, 50_000, 100, 256, make)


ROWS = [
    *(cifar("table1", 10, depth) for depth in (56, 110, 230, 1202)),
    *(cifar("table2", 100, depth) for depth in (56, 110, 230, 1202)),
    *(imagenet(depth) for depth in (18, 50)),
]


def flops(model: nn.Module, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Return the operations for an image: forward, and a whole training step's."""
    inputs = torch.randn(BATCH, *shape)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = model(inputs).square().mean()
        forward = counter.get_total_flops()
        loss.backward()
    return forward / BATCH, counter.get_total_flops() / BATCH


def main() -> None:
    """Print a markdown table."""
    columns = ["GFLOP an image", "PFLOP a run", "runs", *RATES, "launches alone"]
    print(f"| table | depth | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for row in ROWS:
        model = row.build(depth=row.depth)
        forward, step = flops(model, row.shape)
        run = row.epochs * (step * row.num_train + forward * (row.num_train + row.num_test))
        hours = [f"{row.num_runs * run / rate / 3600:,.0f} h" for rate in RATES.values()]
        num_layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
        steps = row.epochs * (row.num_train // row.batch_size)
        launches = steps * num_layers * LAUNCHES_PER_LAYER * SECONDS_PER_LAUNCH * row.num_runs
        cells = [f"{step / 1e9:.2f}", f"{run / 1e15:.1f}", str(row.num_runs), *hours]
        print(f"| {row.table} | {row.depth} | {' | '.join(cells)} | {launches / 3600:,.0f} h |")


if __name__ == "__main__":
    main()
