"""``condexp.run``: an experiment from Python, as the command line runs it."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from condexp.cli.hydra_app import explain
from condexp.config.presets import chosen_presets, conf_dir
from condexp.config.validation import parse_config
from condexp.errors import InputError
from condexp.runs.execute import run_experiment
from condexp.runs.progress import ProgressReporter
from condexp.runs.result import RunResult


def run(overrides: Sequence[str] = ()) -> RunResult:
    """Run one experiment, resume it, or find its stored result, as ``condexp run`` does.

    Args:
        overrides: Those of the command line, such as ``["model=vgg", "seed=2"]``.

    Returns:
        How it ended: ``state``, ``folder``, and ``objective`` where ``run.objective`` names one.

    Raises:
        InputError: If the experiment cannot run as configured; nothing was written.
    """
    earlier = GlobalHydra.instance().hydra  # whoever calls may be an application of Hydra's
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = earlier
    config = parse_config(composed, **chosen_presets(composed.hydra))
    if config.run.dry_run or config.run.index is not None:
        raise InputError("run.dry_run and run.index are of the command line: leave them out.")
    reporter = ProgressReporter("1")
    try:
        return run_experiment(config, reporter)
    finally:
        reporter.close()
