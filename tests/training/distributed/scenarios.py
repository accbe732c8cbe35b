"""What one process and several have to agree on; each rank of ``ranks.py`` runs it."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from condexp.analysis.analyze import analyze_batches
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import LAYER_MEASURES, WHOLE_MATRICES, FisherType, Matrix
from condexp.data.dataset import Share
from condexp.data.loaders import WHOLE, Batches
from condexp.models.choices import Norm
from condexp.models.norm import make_norm
from condexp.models.sync_batchnorm import convert_sync_batchnorm
from condexp.training.choices import ProbeMode, Source
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from condexp.training.evaluate import Evaluator
from condexp.training.learning_rate import constant
from condexp.training.loop import Plan, Trainer
from condexp.training.optimizers import build_optimizer
from condexp.training.probe import Probe, draw_probe
from condexp.training.seeding import seed_everything
from tests.training.runs import NUM_CLASSES, Log, images

BATCH, NUM_STEPS, PER_EPOCH = 12, 6, 3
DATA = images(36)
ALL = AnalysisOptions(matrices=WHOLE_MATRICES)
Numbers = dict[str, Tensor]


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 10),  # 12 rows: fewer than the features of its input
        nn.Tanh(),
        nn.Linear(10, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, NUM_CLASSES),
    )


def cnn(*norms: str) -> nn.Sequential:
    first, second, third = (norms * 3)[:3]
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        make_norm(first, 4, spatial=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        make_norm(second, 4, spatial=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (2, 3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        make_norm(third, 6, spatial=False),
        nn.Linear(6, NUM_CLASSES),
    )


def trained(
    communicator: TrainingCommunicator,
    build: Callable[[], nn.Sequential],
    *,
    options: AnalysisOptions = ALL,
    probe: Probe | None = None,
    num_steps: int = NUM_STEPS,
    measured: bool = True,
) -> Numbers:
    """Train and measure; all numbers of it, on rank 0."""
    seed_everything(1)
    model = build().double()
    if isinstance(communicator, ProcessGroupCommunicator):
        convert_sync_batchnorm(
            model, communicator.all_reduce_mean_with_grad, communicator.world_size
        )

    def batches(size: int, *, training: bool = False) -> Batches:
        return Batches(
            DATA.train,
            mean=DATA.mean,
            std=DATA.std,
            batch_size=size,
            shuffle=training,
            dtype=torch.float64,
            share=Share(communicator.rank, communicator.world_size) if training else WHOLE,
        )

    log = Log()
    Trainer(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=build_optimizer(
            "sgd", model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3
        ),
        learning_rate=constant(0.05),
        batches=batches(BATCH, training=True),
        plan=Plan(
            num_steps,
            PER_EPOCH,
            (0, 2, num_steps - 1) if measured else (),
            (PER_EPOCH, num_steps),
        ),
        options=options,
        source=Source.TRAIN_BATCH if probe is None else Source.PROBE,
        probe=probe,
        evaluate=Evaluator(nn.CrossEntropyLoss(), batches(8), batches(5), communicator),
        communicator=communicator,
    ).train([log])
    found = {
        "losses": torch.tensor([record.loss for record in log.steps]),
        "scores": torch.tensor([vars(record)[name] for record in log.evals for name in SCORES]),
    }
    if communicator.rank == 0:
        for record in log.snapshots:
            found |= numbers(f"step {record.step}", record.snapshot)
    weights = {f"weight {name}": value.detach() for name, value in model.named_parameters()}
    buffers = {f"buffer {name}": value for name, value in model.named_buffers()}
    return found | weights | (buffers if communicator.rank == 0 else {})


SCORES = ("train_loss", "train_error", "test_loss", "test_error")


def numbers(where: str, snapshot: Snapshot) -> Numbers:
    found = {f"{where} num_samples": torch.tensor(snapshot.num_samples)}
    found[f"{where} coverage"] = torch.tensor(snapshot.coverage.parameters)
    found[f"{where} not analysed"] = torch.tensor(len(snapshot.not_analysed))
    if snapshot.fisher is not None:
        found[f"{where} fisher of the network"] = snapshot.fisher.eigenvalues
    for record in snapshot.records:
        for matrix in WHOLE_MATRICES:
            spectrum = getattr(record, matrix)
            if spectrum is not None and matrix is not Matrix.KFAC:  # its factors say it all
                found[f"{where} {record.info.name} {matrix}"] = spectrum.eigenvalues
            elif spectrum is not None:
                kappas = torch.tensor([spectrum.kappa(0.1), spectrum.lambda_max, spectrum.rank])
                found[f"{where} {record.info.name} {matrix}"] = kappas
        for measure in LAYER_MEASURES:
            value = torch.tensor(getattr(record, measure), dtype=torch.float64)
            found[f"{where} {record.info.name} {measure}"] = value
    return found


def probe_of(mode: ProbeMode) -> Probe:
    """Three batches: two ranks have unequal shares, and of four one has none."""
    return draw_probe(DATA, size=21, batch_size=8, mode=mode, seed=3, dtype=torch.float64)


def probed(communicator: TrainingCommunicator, fisher_type: FisherType) -> Numbers:
    options = AnalysisOptions(matrices=WHOLE_MATRICES, fisher_type=fisher_type, mc_samples=2)
    probe = probe_of(ProbeMode.EVAL)
    return trained(communicator, lambda: cnn(Norm.BATCH), probe=probe, options=options, num_steps=3)


def unequal_shares(communicator: TrainingCommunicator) -> Numbers:
    """Two batches of 5 and 9 samples, of which further ranks have none; units differ in them."""
    seed_everything(2)
    layers = {
        "first": nn.Linear(8, 8),
        "act": nn.ReLU(),
        "second": nn.Linear(8, 70),  # more features than one stripe of a packed matrix
        "tanh": nn.Tanh(),
        "third": nn.Linear(70, 3),
    }
    model = nn.Sequential(OrderedDict(layers)).double()
    first = layers["first"]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # unit 0 is never on, unit 1 where the last feature is 1
        first.weight[:2] = 0.0
        first.weight[1, 7], first.bias[0], first.bias[1] = 2.0, -1.0, -1.0
        first.bias[2:] += 1.0
    batches = []
    for size, last in ((5, 0.0), (9, 1.0)):
        inputs = torch.rand(size, 8, dtype=torch.float64) + 100 * last
        inputs[:, 7] = last
        batches.append((inputs, torch.arange(size) % 3))
    snapshot = analyze_batches(
        model, nn.CrossEntropyLoss(), batches, ALL, communicator=communicator
    )
    if communicator.rank:
        return {}
    found = numbers("", snapshot)
    return {name.strip(): value for name, value in found.items()}


SCENARIOS: dict[str, Callable[[TrainingCommunicator], Numbers]] = {
    "mlp": lambda communicator: trained(communicator, mlp),
    "centred, with bias": lambda communicator: trained(
        communicator, mlp, options=AnalysisOptions(center=True, bias=True), num_steps=3
    ),
    "batch norm": lambda communicator: trained(communicator, lambda: cnn(Norm.BATCH)),
    "not looked at": lambda communicator: trained(
        communicator, lambda: cnn(Norm.BATCH), measured=False
    ),
    "halves of it": lambda communicator: trained(
        communicator, lambda: cnn(Norm.SCALE, Norm.CENTER, Norm.BATCH)
    ),
    "channels only": lambda communicator: trained(
        communicator,
        lambda: cnn(Norm.NONE),
        options=AnalysisOptions(matrices=(Matrix.GRAD_OUTPUT,), conv_input="channels"),  # type: ignore[arg-type]
        num_steps=3,
    ),
    "unequal shares": unequal_shares,
    "unequal shares, again": unequal_shares,
    "probe": lambda communicator: trained(
        communicator, lambda: cnn(Norm.BATCH), probe=probe_of(ProbeMode.TRAIN), num_steps=3
    ),
    "probe, drawn labels": lambda communicator: probed(communicator, FisherType.MC),
    "probe, all labels": lambda communicator: probed(communicator, FisherType.EXACT),
}
