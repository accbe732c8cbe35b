"""Tiny runs of the training loop, and everything about them that can be compared bit by bit."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import WHOLE_MATRICES
from condexp.data.dataset import Dataset, Split, Task
from condexp.data.loaders import Batches
from condexp.training.choices import ModelPrecision, ProbeMode, Source
from condexp.training.evaluate import Evaluator, LossFunction
from condexp.training.events import EvalRecord, Sink, SnapshotRecord, StepRecord
from condexp.training.execution import compile_model, configure
from condexp.training.learning_rate import multistep
from condexp.training.loop import Outcome, Plan, Trainer, never
from condexp.training.optimizers import build_optimizer
from condexp.training.probe import Probe, draw_probe
from condexp.training.seeding import seed_everything

NUM_CLASSES = 3
BATCH = 5
STEPS_PER_EPOCH = 4  # 22 samples: the last two of an epoch are dropped
NUM_STEPS = 6
EVERY_MATRIX = AnalysisOptions(matrices=WHOLE_MATRICES)
EVALS = (4, 6)


class Noise(nn.Module):
    """Draws from Python's and NumPy's generators, as some users' layers do."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()))


class Block(nn.Module):
    """A residual block with everything that is done in place."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu_(self.norm1(self.conv1(inputs)))
        outputs: Tensor = self.norm2(self.conv2(self.dropout(hidden)))
        outputs += inputs
        return torch.relu_(outputs)


def mlp(dropout: float, *, noise: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 7),
        nn.BatchNorm1d(7),
        nn.ReLU(inplace=True),
        Noise() if noise else nn.Identity(),
        nn.Dropout(dropout),
        nn.Linear(7, NUM_CLASSES),
    )


def resnet(dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        Block(4, dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, NUM_CLASSES),
    )


def images(num_train: int = 22) -> Dataset:
    """Three classes of 6×6 images, brighter by class and noisy."""
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        targets = torch.arange(size) % NUM_CLASSES
        noise = torch.randint(0, 150, (size, 1, 6, 6), generator=generator)
        return Split((noise + 50 * targets.view(-1, 1, 1, 1)).to(torch.uint8), targets)

    return Dataset(
        name="images",
        task=Task.CLASSIFICATION,
        train=split(num_train),
        test=split(9),
        mean=(128.0,),
        std=(64.0,),
        num_outputs=NUM_CLASSES,
        checksum="",
    )


@dataclass
class Log:
    """A sink that remembers, and may stumble."""

    steps: list[StepRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)
    snapshots: list[SnapshotRecord] = field(default_factory=list)
    order: list[tuple[str, int]] = field(default_factory=list)
    stumble: tuple[str, int] | None = None

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)
        self._note("step", record.step)

    def on_eval(self, record: EvalRecord) -> None:
        self.evals.append(record)
        self._note("eval", record.step)

    def on_snapshot(self, record: SnapshotRecord) -> None:
        self.snapshots.append(record)
        self._note("snapshot", record.step)

    def _note(self, what: str, step: int) -> None:
        self.order.append((what, step))
        if (what, step) == self.stumble:
            raise OSError("the sink stumbled")


@dataclass
class Run:
    """One run from its seed, with what it leaves behind."""

    build: Callable[[], nn.Sequential]
    seed: int = 0
    source: Source = Source.TRAIN_BATCH
    mode: ProbeMode = ProbeMode.TRAIN
    snapshots: tuple[int, ...] = ()
    evals: tuple[int, ...] = EVALS
    sharpness_every: int | None = None
    options: AnalysisOptions = EVERY_MATRIX
    num_steps: int = NUM_STEPS
    data: Dataset = field(default_factory=images)
    loss_fn: LossFunction = field(default_factory=nn.CrossEntropyLoss)
    log: Log = field(default_factory=Log)
    optimizer_name: str = "sgd"
    precision: ModelPrecision = ModelPrecision.FP32
    channels_last: bool = False
    backend: str | Callable[..., object] | None = None

    def __post_init__(self) -> None:
        seed_everything(self.seed)
        self.model = self.build()
        configure(
            self.model,
            torch.device("cpu"),
            precision=self.precision,
            channels_last=self.channels_last,
        )
        self.optimizer = build_optimizer(
            self.optimizer_name,
            self.model.parameters(),
            lr=0.1,
            weight_decay=1e-3,
            momentum=0.9 if self.optimizer_name == "sgd" else 0.0,
        )

    def train(
        self,
        more_sinks: Sequence[Sink] = (),
        *,
        start: int = 0,
        pause: Callable[[int], bool] = never,
    ) -> Outcome:
        return Trainer(
            model=self.model,
            loss_fn=self.loss_fn,
            optimizer=self.optimizer,
            learning_rate=multistep(
                0.1, milestones=[1], gamma=0.5, steps_per_epoch=STEPS_PER_EPOCH
            ),
            batches=self.batches(self.data.train, BATCH, shuffle=True),
            plan=Plan(
                self.num_steps, STEPS_PER_EPOCH, self.snapshots, self.evals, self.sharpness_every
            ),
            options=self.options,
            source=self.source,
            probe=self.probe() if self.source is Source.PROBE else None,
            evaluate=Evaluator(
                nn.CrossEntropyLoss(),
                self.batches(self.data.train, 8),
                self.batches(self.data.test, 8),
            ),
            compiled=compile_model(self.model, self.backend) if self.backend else None,
        ).train([self.log, *more_sinks], start=start, pause=pause)

    def batches(self, split: Split, batch_size: int, *, shuffle: bool = False) -> Batches:
        return Batches(
            split,
            mean=self.data.mean,
            std=self.data.std,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
        )

    def probe(self) -> Probe:
        return draw_probe(self.data, size=11, batch_size=4, mode=self.mode, seed=self.seed)

    def state(self) -> dict[str, object]:
        """Weights, buffers, gradients, optimizer, modes and random states, to the last bit."""
        return model_state(self.model) | {
            f"{name} {index}": _bits(value)
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }


def model_state(model: nn.Module) -> dict[str, object]:
    """Everything about a model and the global generators that analysing could change."""
    state: dict[str, object] = {
        f"value {name}": _bits(value) for name, value in model.state_dict().items()
    }
    state |= {f"gradient {name}": _bits(p.grad) for name, p in model.named_parameters()}
    state |= {f"mode {name}": module.training for name, module in model.named_modules()}
    name, keys, *rest = np.random.get_state()
    return state | {
        "torch": _bits(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tobytes(), *rest),
    }


def hooks(model: nn.Module) -> list[str]:
    """Names of all hooks on modules and parameters."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_post_accumulate_grad_hooks",
    )
    owners = [*model.named_modules(), *model.named_parameters()]
    return [
        f"{name}.{kind}" for name, owner in owners for kind in kinds if getattr(owner, kind, None)
    ]


def _bits(value: object) -> object:
    """Bytes of a tensor: NaN equals itself, and −0 differs from 0."""
    return value.detach().numpy().tobytes() if isinstance(value, Tensor) else value
