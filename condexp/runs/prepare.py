"""Every check before a run: what can be wrong is found here, before anything is trained or written.

The model is built on torch's ``meta`` device where it can be, so that a sweep of deep networks is
checked quickly.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from condexp.analysis.costs import LayerCost
from condexp.analysis.layers.info import Catalogue
from condexp.analysis.linalg.tracking import NUM_VECTORS
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import CURVATURE_MATRICES, Matrix
from condexp.config import Config
from condexp.config.analysis import AnalysisConfig
from condexp.config.training import ImportOptimizerConfig
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.runs.build import (
    build_model,
    file_attributes,
    identified,
    load_dataset,
    make_learning_rate,
    make_loss,
    make_optimizer,
    make_probe,
    training_batches,
)
from condexp.runs.checks import (
    check_curvature,
    check_labels,
    check_length,
    check_loggers,
    check_memory,
    check_processes,
    num_signals,
    warn_of_no_effect,
)
from condexp.runs.extension import ExtendedRun, extended_run
from condexp.runs.model_trace import ModelTrace, trace_model
from condexp.runs.user_training import try_optimizer
from condexp.store.hdf5.offsets import check_copyable
from condexp.store.run_folder.completeness import read_checked_status
from condexp.store.run_folder.identity import identity_yaml, run_folder
from condexp.store.run_folder.status import FINISHED
from condexp.store.schema.layout import FileSpec, file_size
from condexp.training.choices import ModelPrecision, Source
from condexp.training.distributed.environment import DistributedEnv
from condexp.training.execution import check_execution, find_device
from condexp.training.loop import Plan
from condexp.training.snapshot_schedule import Schedule, evaluation_steps

SMALL_FILES_BYTES = 2**22  # pictures, log, provenance, status, configuration


@dataclass(frozen=True)
class PreparedRun:
    """A checked experiment: all that is known of it before training.

    Attributes:
        config: Its configuration, which tells its data too.
        folder: Where the run lives.
        device: Where it trains.
        dataset: What it trains on.
        catalogue: The layers.
        options: What is measured of them.
        plan: When.
        spec: What its results file is created from.
        num_bytes: Disk space that the run takes at most, while it is being sealed.
        costs: What measuring takes, layer by layer.
        extended: The complete run that it begins with; None: it begins at step 0.
    """

    config: Config
    folder: Path
    device: torch.device
    dataset: Dataset
    catalogue: Catalogue
    options: AnalysisOptions
    plan: Plan
    spec: FileSpec
    num_bytes: int
    costs: tuple[LayerCost, ...]
    extended: ExtendedRun | None = None

    @property
    def probes(self) -> bool:
        """Whether anything is measured of a probe."""
        return self.source is Source.PROBE and looks(self.plan)

    @property
    def source(self) -> Source:
        """Which samples snapshots are taken from."""
        return Source(self.config.analysis.source)


def prepare(config: Config) -> PreparedRun:
    """Check everything that can be checked without training, and write nothing.

    Args:
        config: The validated configuration.

    Returns:
        The checked experiment.

    Raises:
        InputError: If the experiment cannot run: what is wrong, and the way out.
    """
    device = find_device(config.trainer.device)
    config = identified(config)
    folder = run_folder(config.plain)
    if config.run.on_existing != "resume" or not _has_ended(folder):
        _check_writable(folder)
    dataset = load_dataset(config)
    check_processes(config, device, len(dataset.train), DistributedEnv.from_environ())
    options = _options(config.analysis, config.seed)
    trace = trace_model(config, dataset, options)
    reused = (layer.name for layer in trace.catalogue.layers if layer.uses > 1)
    options = replace(options, float64=tuple(reused))
    extended = extended_run(config.run.extend_from)
    if extended is not None:
        extended.check(config.plain, dataset.checksum)
    plan = _plan(config, dataset)
    rate = make_learning_rate(config, plan.num_steps, plan.steps_per_epoch)
    if extended is not None:
        plan = extended.plan(plan, rate)
    warn_of_no_effect(config, len(dataset.train), plan)
    # These raise where an argument is out of range, or the user's own code fails.
    loss_fn = make_loss(config, dataset)
    slots = _optimizer_bytes(config, dataset, trace.model)
    if Source(config.analysis.source) is Source.PROBE and looks(plan):
        make_probe(config, dataset, torch.device("cpu"))  # raises where it cannot be drawn
    check_execution(
        device,
        precision=ModelPrecision(config.trainer.precision),
        compiled=config.trainer.compile,
    )
    spec = _file_spec(
        config, dataset, trace.catalogue, options, plan, num_signals(options, dataset, loss_fn)
    )
    check_loggers(config, spec)
    if extended is not None:
        check_copyable(extended.results, spec)
    costs = _costs(config, trace, spec)
    if plan.snapshot_steps:
        check_labels(config.analysis, options, trace.model, loss_fn)
        check_memory(options, costs)
    check_curvature(config, options, plan)
    vectors = _vector_bytes(trace.model, options, plan)
    num_bytes = _disk_space(config, spec, _num_bytes(trace.model) + slots + vectors)
    return PreparedRun(
        config,
        folder,
        device,
        dataset,
        trace.catalogue,
        options,
        plan,
        spec,
        num_bytes=num_bytes,
        costs=costs,
        extended=extended,
    )


def _num_bytes(model: nn.Module) -> int:
    tensors = model.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() + 1024 for tensor in tensors)


def looks(plan: Plan) -> bool:
    """Return whether a run measures anything, at snapshots or between them.

    Args:
        plan: Its plan.
    """
    return bool(plan.snapshot_steps) or plan.sharpness_every is not None


def _vector_bytes(model: nn.Module, options: AnalysisOptions, plan: Plan) -> int:
    """Return the bytes of the eigenvectors that a checkpoint keeps, float32."""
    num_matrices = len({*CURVATURE_MATRICES} & {*options.matrices}) if plan.snapshot_steps else 0
    num_vectors = num_matrices * (options.top_k + 1) * (1 + options.layer_blocks)
    num_vectors += NUM_VECTORS if plan.sharpness_every is not None else 0
    return 4 * num_vectors * sum(p.numel() for p in model.parameters() if p.requires_grad)


def _optimizer_bytes(config: Config, dataset: Dataset, model: nn.Module) -> int:
    """Return the bytes of the optimizer's state; the user's own has to be tried to tell."""
    if isinstance(config.optimizer, ImportOptimizerConfig):
        return try_optimizer(config.optimizer, build_model(config, dataset))
    make_optimizer(config, model)
    return config.optimizer.num_slots * _num_bytes(model)


def _disk_space(config: Config, spec: FileSpec, states: int) -> int:
    """Return the bytes that a run takes at most.

    Returns:
        Those of the results, twice: sealed beside unsealed; of the checkpoint, three times: the one
        before and the one that is being written; and of the small files.

    Raises:
        InputError: If it is more than ``run.max_disk``.
    """
    checkpoint = states + 2**17  # with the random states
    results = round(1.1 * file_size(spec))
    total = 2 * results + 3 * checkpoint + SMALL_FILES_BYTES
    if total > config.run.max_disk * 1e9:
        raise InputError(
            f"the run takes up to {total / 1e9:.3g} GB of disk ({len(spec.snapshot_steps)} "
            f"snapshots in results of {results / 1e9:.3g} GB, sealed beside unsealed), more than "
            f"run.max_disk={config.run.max_disk:g}: measure less often (analysis.schedule), leave "
            "spectra out (analysis.save_spectra=false), or give "
            f"run.max_disk={math.ceil(total / 1e9)}."
        )
    return total


def _has_ended(folder: Path) -> bool:
    """Return whether a result is there to be shown, which a read-only disk allows as well."""
    try:
        return read_checked_status(folder).state in FINISHED
    except InputError:
        return False


def _check_writable(folder: Path) -> None:
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise InputError(f"run.root: {folder} cannot be reached: {error}.") from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"run.root: {folder} cannot be made, for {nearest} is not a folder that can be written "
            "to; set run.root to one that can."
        )


def _options(analysis: AnalysisConfig, seed: int) -> AnalysisOptions:
    limit = analysis.memory_limit
    return AnalysisOptions(
        matrices=tuple(Matrix(name) for name in analysis.matrices),
        fisher_type=analysis.fisher_type,  # type: ignore[arg-type]  # converted by the record
        layers=tuple(analysis.layers.include),
        exclude=tuple(analysis.layers.exclude),
        conv_input=analysis.conv_input,  # type: ignore[arg-type]
        weight_sharing=analysis.weight_sharing,  # type: ignore[arg-type]
        center=analysis.center,
        bias=analysis.bias,
        precision=analysis.precision,  # type: ignore[arg-type]
        network_precision=analysis.network_precision,  # type: ignore[arg-type]
        kappa_p=tuple(analysis.kappa_p),
        seed=seed,
        mc_samples=analysis.mc_samples,
        memory_limit=None if limit is None else max(1, round(limit * 1e9)),
        top_k=analysis.top_k,
        eigenvalue_tolerance=analysis.eigenvalue_tolerance,
        num_random_vectors=analysis.num_random_vectors,
        num_lanczos_steps=analysis.num_lanczos_steps,
        layer_blocks=analysis.layer_blocks,
    )


def _plan(config: Config, dataset: Dataset) -> Plan:
    trainer, analysis = config.trainer, config.analysis
    per_epoch = training_batches(config, dataset, torch.device("cpu")).steps_per_epoch
    limits = (trainer.steps, trainer.epochs and trainer.epochs * per_epoch)
    num_steps = min(limit for limit in limits if limit is not None)
    check_length(config, num_steps, per_epoch)
    setting = analysis.schedule
    schedule = Schedule(
        every_steps=setting.every_steps,
        every_epochs=setting.every_epochs,
        at_steps=tuple(setting.at_steps),
        log_spaced=setting.log_spaced,
        at_start=setting.at_start,
        at_end=setting.at_end,
    )
    last = num_steps if Source(analysis.source) is Source.PROBE else num_steps - 1
    return Plan(
        num_steps=num_steps,
        steps_per_epoch=per_epoch,
        # Nothing to measure is no schedule that never fires.
        snapshot_steps=schedule.steps(num_steps, per_epoch, last) if analysis.matrices else (),
        eval_steps=evaluation_steps(num_steps, per_epoch, trainer.eval.every_epochs),
        sharpness_every=analysis.sharpness.every_steps,
    )


def _num_samples(config: Config, available: int) -> int:
    if Source(config.analysis.source) is Source.PROBE:
        return config.analysis.probe.size
    size = config.trainer.batch_size
    return available if isinstance(size, str) else min(size, available)


def _costs(config: Config, trace: ModelTrace, spec: FileSpec) -> tuple[LayerCost, ...]:
    probed = Source(config.analysis.source) is Source.PROBE
    batch_size = config.analysis.probe.batch_size if probed else spec.num_samples
    return tuple(
        LayerCost(
            layer,
            trace.footprints[layer.name],
            num_samples=spec.num_samples,
            num_signals=spec.num_signals,
            matrices=spec.matrices if spec.snapshot_steps else (),
            batch_size=batch_size,
        )
        for layer in spec.layers
    )


def _file_spec(
    config: Config,
    dataset: Dataset,
    catalogue: Catalogue,
    options: AnalysisOptions,
    plan: Plan,
    signals: int,
) -> FileSpec:
    analysis = config.analysis
    probe = analysis.source == Source.PROBE
    return FileSpec(
        layers=catalogue.layers,
        not_analysed=catalogue.not_analysed,
        matrices=options.matrices,
        kappa_p=options.kappa_p,
        save_spectra=analysis.save_spectra,
        snapshot_steps=plan.snapshot_steps,
        eval_steps=plan.eval_steps,
        num_train_steps=plan.num_steps,
        steps_per_epoch=plan.steps_per_epoch,
        num_samples=_num_samples(config, len(dataset.train)),
        num_signals=signals,
        config_yaml=identity_yaml(config.plain),
        top_k=options.top_k,
        layer_blocks=options.layer_blocks,
        sharpness=plan.sharpness_every is not None,
        attributes=file_attributes(
            f"{config.model.title} on {config.dataset.name}, seed {config.seed}",
            options,
            source=analysis.source,
            bn_mode=analysis.probe.mode if probe else "train",
        ),
    )
