"""Checks of an experiment that need its model, its data or its processes."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn

from condexp.analysis.costs import LayerCost
from condexp.analysis.fisher.ekfac import refuse_wide
from condexp.analysis.fisher.memory import check_fits
from condexp.analysis.loss.cotangents import FisherLabels, refuse_batch_statistics
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import CURVATURE_MATRICES, SAMPLE_MATRICES, FisherType, Matrix
from condexp.config import Config
from condexp.config.analysis import AnalysisConfig
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.results.loggers.choice import chosen_layers, chosen_measures
from condexp.store.schema.layout import FileSpec
from condexp.store.schema.matrices import NETWORK
from condexp.training.choices import ProbeMode, Source
from condexp.training.distributed.environment import DistributedEnv
from condexp.training.loop import Plan

MAX_STEPS = 10**8
MAX_RECORDS = 10**6
logger = logging.getLogger("condexp")
_said: set[str] = set()  # a sweep prepares many runs of one kind
LEAST_SHARE = 2  # samples: batch statistics of one are void


def refuse_several_sweeps() -> None:
    """Refuse a sweep that every process of torchrun or srun would run.

    Raises:
        InputError: If this process was started with others.
    """
    env = DistributedEnv.from_environ()
    if env is not None:
        raise InputError(
            f"{env.starter} started {env.world_size} processes, and each would run the sweep: "
            f"start it once, without {env.starter}, or leave out -m."
        )


def check_processes(
    config: Config, device: torch.device, num_train: int, env: DistributedEnv | None
) -> None:
    """Refuse what several processes cannot do together, before anything is trained.

    Args:
        config: The validated configuration.
        device: Where it trains.
        num_train: Training samples.
        env: As :meth:`DistributedEnv.from_environ` found it.

    Raises:
        InputError: If the processes that were started are not those of the configuration, or the
            batches do not divide, or the devices do not suffice.
    """
    trainer, size = config.trainer, config.trainer.num_processes
    if env is not None and env.world_size != size:
        raise InputError(
            f"{env.starter} started {env.world_size} processes, and trainer.num_processes is "
            f"{size}: give trainer.num_processes={env.world_size}, or start one process."
        )
    if size == 1:
        return
    batch_size = num_train if isinstance(trainer.batch_size, str) else trainer.batch_size
    batch_size = min(batch_size, num_train)
    if batch_size % size or batch_size // size < LEAST_SHARE:
        down, up = batch_size // size * size, -(-batch_size // size) * size
        nearest = [n for n in (down, up) if n >= LEAST_SHARE * size] or [LEAST_SHARE * size]
        raise InputError(
            f"a batch of {batch_size} samples does not divide among trainer.num_processes={size} "
            f"with {LEAST_SHARE} samples each at least: use trainer.batch_size="
            f"{' or '.join(map(str, nearest))}."
        )
    if trainer.compile:
        raise InputError(
            f"trainer.compile=true does not work with trainer.num_processes={size}: leave one out."
        )
    local = size if env is None else 1 if env.bound else env.local_world_size
    if device.type == "mps" or device.index is not None:
        raise InputError(
            f"trainer.device={device} is one device, and trainer.num_processes={size} take one "
            "each: use trainer.device=cuda or cpu."
        )
    if device.type == "cuda" and torch.cuda.device_count() < local:
        raise InputError(
            f"trainer.num_processes={size} puts {local} on this machine, which has "
            f"{torch.cuda.device_count()} CUDA devices: use fewer, or trainer.device=cpu."
        )


def check_length(config: Config, num_steps: int, steps_per_epoch: int) -> None:
    """Refuse a run that is longer than its results file and its memory can bear.

    Args:
        config: The validated configuration.
        num_steps: Updates of the run.
        steps_per_epoch: Updates in an epoch.

    Raises:
        InputError: If there are too many steps, evaluations or snapshots.
    """
    if num_steps > MAX_STEPS:
        raise InputError(
            f"the run has {num_steps} steps ({steps_per_epoch} an epoch), and {MAX_STEPS} are the "
            "most: lower trainer.epochs or trainer.steps."
        )
    every, schedule = config.trainer.eval.every_epochs, config.analysis.schedule
    periods = {
        "trainer.eval.every_epochs": every and every * steps_per_epoch,
        "analysis.schedule.every_steps": schedule.every_steps,
        "analysis.schedule.every_epochs": (schedule.every_epochs or 0) * steps_per_epoch,
    }
    for key, period in periods.items():
        if period and num_steps // period > MAX_RECORDS:
            raise InputError(
                f"{key} makes {num_steps // period} records in {num_steps} steps, and "
                f"{MAX_RECORDS} are the most: give it a larger number."
            )


def warn_of_no_effect(config: Config, num_train: int, plan: Plan) -> None:
    """Say which settings have no effect in a run that makes sense without them.

    Args:
        config: The validated configuration.
        num_train: Training samples.
        plan: The length of the run.
    """
    trainer, scheduler, setting = config.trainer, config.scheduler, config.analysis.schedule
    epochs = -(-plan.num_steps // plan.steps_per_epoch)
    size, release = trainer.batch_size, trainer.rescale.release_epoch
    late = [e for e in getattr(scheduler, "milestones", ()) if e >= epochs]
    asked = setting.every_steps or setting.every_epochs or setting.at_steps or setting.log_spaced
    remarks = []
    if isinstance(size, int) and size > num_train:
        remarks.append(f"trainer.batch_size={size}: there are {num_train} training samples")
    if late:
        remarks.append(f"scheduler.milestones: {late} lie past the end, at epoch {epochs}")
    if scheduler.warmup_steps > plan.num_steps:
        steps = f"the run has {plan.num_steps} steps"
        remarks.append(f"scheduler.warmup_steps={scheduler.warmup_steps}: {steps}")
    if release and release >= epochs:
        remarks.append(f"trainer.rescale.release_epoch={release}: the run ends at epoch {epochs}")
    if asked and not config.analysis.matrices:
        remarks.append("analysis.matrices=[] measures nothing, and analysis.schedule names steps")
    for remark in remarks:
        if remark not in _said:
            _said.add(remark)
            logger.warning("note: %s", remark)


def check_parallel(num_jobs: object) -> None:
    """Refuse a number of jobs at a time that is none.

    Args:
        num_jobs: ``hydra.launcher.n_jobs``; None where the launcher has no such key.

    Raises:
        InputError: If it is neither -1 nor positive.
    """
    if num_jobs is not None and (
        not isinstance(num_jobs, int) or (num_jobs < 1 and num_jobs != -1)
    ):
        raise InputError(
            f"hydra.launcher.n_jobs={num_jobs}: give how many jobs run at a time, or -1 for one a "
            "core."
        )


def num_signals(options: AnalysisOptions, dataset: Dataset, loss_fn: object) -> int:
    """Count the back-propagations of each sample.

    Args:
        options: ``fisher_type`` and ``mc_samples`` are read.
        dataset: Its outputs are counted.
        loss_fn: The training loss.

    Returns:
        One for the data's labels, ``mc_samples`` for drawn ones; for all labels one fewer than the
        classes, or one for each output of a squared error.
    """
    match options.fisher_type:
        case FisherType.EMPIRICAL:
            return 1
        case FisherType.MC:
            return options.mc_samples
        case FisherType.EXACT:
            return dataset.num_outputs - isinstance(loss_fn, nn.CrossEntropyLoss)


def check_labels(
    analysis: AnalysisConfig, options: AnalysisOptions, model: nn.Module, loss_fn: object
) -> None:
    """Refuse labels other than the data's where they cannot be back-propagated.

    Args:
        analysis: ``source`` and ``probe.mode`` are read.
        options: What is to be measured.
        model: The network, or one like it; its mode is changed.
        loss_fn: The training loss.

    Raises:
        InputError: If the training makes no such backward passes, the loss has no such labels, or
            batch statistics would mix the samples in them.
    """
    if options.fisher_type is FisherType.EMPIRICAL:
        return
    if Source(analysis.source) is Source.TRAIN_BATCH:
        raise InputError(
            f"analysis.fisher_type={options.fisher_type} needs backward passes of its own, and "
            "analysis.source=train_batch has the training loss's alone: set analysis.source=probe, "
            "or analysis.fisher_type=empirical."
        )
    FisherLabels(loss_fn, options)  # raises where it has none
    try:
        refuse_batch_statistics(
            model.train(ProbeMode(analysis.probe.mode) is ProbeMode.TRAIN), options
        )
    except InputError as error:
        raise InputError(f"{error} In a configuration: analysis.probe.mode=eval.") from error


def check_curvature(config: Config, options: AnalysisOptions, plan: Plan) -> None:
    """Refuse a Hessian or a Gauss–Newton matrix where its products cannot be right.

    Args:
        config: The validated configuration.
        options: What is to be measured.
        plan: When.

    Raises:
        InputError: If several processes train, or the passes are in bfloat16.
    """
    trainer, asked = config.trainer, []
    if options.wants_curvature and plan.snapshot_steps:
        asked.append("analysis.matrices: hessian and ggn")
    if plan.sharpness_every is not None:
        asked.append("analysis.sharpness")
    if not asked:
        return
    if trainer.num_processes > 1:
        raise InputError(
            f"{' and '.join(asked)} are measured by one process alone, and "
            f"trainer.num_processes={trainer.num_processes} train together: keep checkpoints "
            "(trainer.checkpoint.keep=all) and measure matrices with condexp analyze."
        )
    if trainer.precision == "bf16" and not options.in_float64:
        raise InputError(
            f"{' and '.join(asked)} of passes in bfloat16 would be rounding: set "
            "analysis.network_precision=float64, or trainer.precision=fp32."
        )


def check_memory(options: AnalysisOptions, costs: Sequence[LayerCost]) -> None:
    """Refuse what is made of samples' gradients where it does not fit ``analysis.memory_limit``.

    Args:
        options: What is to be measured.
        costs: The layers.

    Raises:
        InputError: If it does not fit, or a factor is too wide for ``ekfac``.
    """
    if options.wants(Matrix.EKFAC):
        for cost in costs:
            factors = [s for m, s in cost.sides.items() if m is not Matrix.FISHER]
            if factors and not any(sides.is_diagonal for sides in factors):
                refuse_wide(cost.layer.name, *((s.num_rows, s.num_features) for s in factors))
    if options.wants(*SAMPLE_MATRICES):
        check_fits(
            options.memory_limit,
            [cost.fisher_bytes for cost in costs],
            costs[0].num_samples,
            costs[0].num_signals,
            in_batches=costs[0].in_batches,
            has_grams=options.wants(Matrix.FISHER),
        )


def check_loggers(config: Config, spec: FileSpec) -> None:
    """Refuse loggers that are not installed, and layers and measures that the run will not have.

    Args:
        config: The validated configuration.
        spec: What the run's results file is created from.

    Raises:
        InputError: If there is one.
    """
    chosen = config.logger.chosen
    for name in chosen:
        if not _is_installed(name):
            raise InputError(f"logger={name} needs {name}: pip install 'condexp[{name}]'.")
    if chosen and spec.snapshot_steps:
        names, types = zip(*((layer.name, str(layer.type)) for layer in spec.layers), strict=True)
        layers = chosen_layers(config.logger.layers, names, types)
        matrices = [str(matrix) for matrix in spec.matrices]
        if NETWORK in layers and not {Matrix.FISHER, *CURVATURE_MATRICES} & {*spec.matrices}:
            raise InputError(
                "logger.layers has network, of which nothing is measured: it is where "
                "analysis.matrices has fisher, hessian or ggn."
            )
        chosen_measures(config.logger.measures, matrices, spec.kappa_p)


def _is_installed(name: str) -> bool:
    try:
        found = find_spec(name)
    except (ImportError, ValueError):
        return True  # something is there: its own process says what is wrong with it
    return found is not None and found.origin is not None  # a folder of that name is no package
