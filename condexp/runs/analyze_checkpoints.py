"""Stored checkpoints of any training, measured afterwards: one snapshot each, in one run folder."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.config import Config
from condexp.errors import InputError
from condexp.runs.execute import let_loggers_catch_up, stored_result
from condexp.runs.loggers import Loggers
from condexp.runs.prepare import PreparedRun, prepare
from condexp.runs.record_folder import RecordFolder, RecordSetting
from condexp.runs.result import RunResult
from condexp.runs.trainer import build_trainer
from condexp.store.run_folder.identity import identity_yaml, run_folder
from condexp.store.run_folder.status import State
from condexp.training.choices import Source
from condexp.training.events import EvalRecord, SnapshotRecord
from condexp.training.loop import Plan, Trainer
from condexp.training.optimizers import set_learning_rate, steady_learning_rate
from condexp.training.stored_weights import read_stored_weights


def analyze_checkpoints(config: Config, paths: Sequence[Path]) -> RunResult:
    """Measure stored checkpoints on the configuration's probe, and evaluate them.

    All files are read and matched with the network before anything is written. A snapshot is what a
    run with ``analysis.source=probe`` takes before the update of that step.

    Args:
        config: The validated configuration: model, data, probe and what is measured.
        paths: The files.

    Returns:
        How it ended, with the run's folder; a result that is stored already is not made again.

    Raises:
        InputError: If a file cannot be used, or nothing is to be measured; nothing was written.
    """
    if config.analysis.sharpness.every_steps is not None:
        raise InputError(
            "analysis.sharpness is measured while a run trains: condexp analyze measures λ_max of "
            "each checkpoint with analysis.matrices=[hessian]."
        )
    prepared = prepare(_probing(config))
    if not prepared.spec.matrices:
        raise InputError("analysis.matrices is empty: condexp analyze has nothing to measure.")
    trainer = build_trainer(prepared, SINGLE_PROCESS)
    steps: dict[int, Path] = {}
    for path in paths:
        stored = read_stored_weights(path)
        stored.matched(trainer.model)
        if (same := steps.setdefault(stored.step, path)) is not path:
            raise InputError(f"{same} and {path} are both of step {stored.step}: give one of them.")
    files = dict(sorted(steps.items()))
    checksums = {step: _sha256(path) for step, path in files.items()}
    plain = {**prepared.config.plain, "checkpoints": checksums}
    folder, on_existing = run_folder(plain), prepared.config.run.on_existing
    told = replace(prepared.config, plain=plain)
    if result := stored_result(folder, on_existing, prepared.dataset.checksum):
        let_loggers_catch_up(told, folder)
        return result
    order = tuple(files)
    plan = Plan(len(files), prepared.plan.steps_per_epoch, order, order)
    title = f"{prepared.spec.attributes['title']}, {len(files)} checkpoint{'s' * (len(files) > 1)}"
    setting = RecordSetting(
        title=title,
        config=plain,
        options=prepared.options,
        plan=plan,
        on_existing="restart",
        device=str(prepared.device),
        data_checksum=prepared.dataset.checksum,
    )
    record = RecordFolder(folder, setting)
    try:
        record.create(
            replace(
                prepared.spec,
                snapshot_steps=order,
                eval_steps=order,
                num_train_steps=0,
                config_yaml=identity_yaml(plain),
                attributes={**prepared.spec.attributes, "title": title},
            )
        )
        for number, (step, path) in enumerate(files.items()):
            _measure(prepared, trainer, record, step, path)
            record.on_checkpoint(number)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        record.finish(
            State.INTERRUPTED if stopped else State.FAILED, str(error) or "stopped by Ctrl-C"
        )
        raise
    record.finish(State.COMPLETE)
    Loggers(told, folder).forget()  # of what an earlier attempt measured there
    let_loggers_catch_up(told, folder)
    return RunResult(folder, State.COMPLETE)


def _probing(config: Config) -> Config:
    # There is no training batch any more.
    source = str(Source.PROBE)
    analysis = {**config.plain["analysis"], "source": source}
    return replace(
        config,
        analysis=replace(config.analysis, source=source),
        plain={**config.plain, "analysis": analysis},
    )


def _measure(
    prepared: PreparedRun, trainer: Trainer, record: RecordFolder, step: int, path: Path
) -> None:
    model, optimizer, probe = trainer.model, trainer.optimizer, trainer.probe
    assert probe is not None
    model.load_state_dict(read_stored_weights(path).matched(model))
    # The rate of that update; the trained network has the last one's.
    last = prepared.plan.num_steps - 1
    set_learning_rate(optimizer, trainer.learning_rate(min(step, last)))
    model.train()
    epoch = step / prepared.plan.steps_per_epoch
    rate = steady_learning_rate(optimizer)
    snapshot = probe.measure(model, trainer.loss_fn, prepared.options, rate)
    record.on_snapshot(SnapshotRecord(step, epoch, snapshot))
    record.on_eval(EvalRecord(step, epoch, *trainer.evaluate(model)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
