"""Between Hydra and an experiment: compose, validate, run; Hydra's errors in our words."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from condexp.cli.parsing import options_of, unknown_option
from condexp.config.presets import chosen_presets, conf_dir, own_profiles
from condexp.errors import InputError, choose
from condexp.runs.stop_signals import Stopped
from condexp.store.run_folder.status import State

if TYPE_CHECKING:
    from condexp.runs.result import RunResult

FULL_ERROR = "HYDRA_FULL_ERROR"


def run(args: list[str]) -> int:
    """Run an experiment, or with ``-m`` a sweep.

    Args:
        args: Hydra's arguments.

    Returns:
        The exit code.
    """
    results: list[RunResult] = []

    def task(composed: DictConfig) -> float | None:
        # Imported here, that completion and --cfg stay quick: they need no torch.
        from condexp.config.validation import parse_config
        from condexp.runs.execute import run_experiment
        from condexp.runs.progress import ProgressReporter

        hydra_config = HydraConfig.get()
        config = parse_config(composed, **chosen_presets(hydra_config))
        if config.run.index is not None:
            raise InputError("run.index chooses one job of a sweep of condexp's: give -m with it.")
        if config.run.dry_run:
            from condexp.results.console import show
            from condexp.runs.sweep.plan import SweepPlanner
            from condexp.runs.sweep.report import plan_table

            planner = SweepPlanner()
            planner.add(hydra_config.overrides.task, config)
            show(plan_table(planner.jobs))
            return None
        searching = hydra_config.mode is RunMode.MULTIRUN  # by a sweeper that is not condexp's
        sweeper = hydra_config.runtime.choices["hydra/sweeper"]
        if searching and config.run.objective is None and sweeper != "basic":
            raise InputError(
                f"hydra/sweeper={sweeper} asks each run for one number: give run.objective=NAME, "
                "such as best_test_error or last_linear.input_kappa_0.5."
            )
        reporter = ProgressReporter()
        try:
            result = run_experiment(config, reporter)
        finally:
            reporter.close()
        results.append(result)
        if searching and result.state is State.FAILED:
            raise InputError(result.message or "failed")  # the sweeper counts it as such
        return result.objective

    if completions := _completions(args):
        sys.stdout.write("\n".join(completions) + "\n")
        return 0
    # A sweep's code is the sweeper's: it has the jobs run in processes of their own.
    code = with_hydra(task, args)
    return code or max((result.exit_code for result in results), default=0)


def _completions(args: Sequence[str]) -> list[str]:
    """Return those of ``experiment=table1/``: Hydra looks in the group's own folder only."""
    word = os.environ.get("COMP_LINE", "").rpartition(" ")[2]
    asked = "/" in word and any(arg.startswith("query=") for arg in args)
    names = [f"experiment={name}" for name in own_profiles()] if asked else []
    return [name for name in names if name.startswith(word)]


def with_hydra(task: Callable[[DictConfig], object], args: list[str]) -> int:
    """Have Hydra compose the configuration, or with ``-m`` those of a sweep, and do a task with it.

    Args:
        task: Given the composed configuration; not called under ``-m``.
        args: Hydra's arguments.

    Returns:
        The exit code.

    Raises:
        InputError: If the configuration cannot be composed, and what the task raises.
        Stopped: If the task was stopped.
    """
    raised: list[InputError | Stopped] = []
    _refuse_unknown_options(args)

    def quiet(composed: DictConfig) -> object:
        try:
            return task(composed)
        except (InputError, Stopped) as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                if isinstance(error, Stopped):  # ends the sweep: an exception ends but its job
                    sys.stderr.write(f"condexp: {error}\n")
                    raise SystemExit(error.exit_code) from error
                raise
            raised.append(error)  # Hydra would announce it with a line of its own
            return None

    # Hydra reads sys.argv, and with this variable it raises instead of printing and exiting.
    argv, full_error = sys.argv, os.environ.get(FULL_ERROR)
    try:
        sys.argv, os.environ[FULL_ERROR] = ["condexp", *args], "1"
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(quiet)()
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(_slip(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise InputError(explain(error, args)) from error
    except SystemExit as stop:  # argparse's, and a sweep's with failed jobs
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
        if full_error is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = full_error
    if raised:
        raise raised[0]
    return 0


def _refuse_unknown_options(args: Sequence[str]) -> None:
    # Hydra's parser would answer with a page of usage.
    parser = get_args_parser()
    options = options_of(parser)
    for arg in args:
        name = arg.partition("=")[0]
        if name.startswith("--") and not any(option.startswith(name) for option in options):
            raise InputError(unknown_option(arg, parser))


def _slip(error: yaml.YAMLError) -> str:
    """Return in one line where a file of the user's is no YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a file of the configuration"
    return f"{where}: {getattr(error, 'problem', None) or ' '.join(str(error).split())}"


def explain(error: Exception, args: Sequence[str] = ()) -> str:
    """Say in one line what Hydra could not compose.

    Args:
        error: Hydra's or OmegaConf's exception.
        args: Hydra's arguments.

    Returns:
        The message, with the nearest valid name where there is one.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        try:
            _refuse_choice(str(error.missing_cfg_file), error.options or ())
        except InputError as unknown:
            return str(unknown)
    if "missing EQUAL" in str(error):
        given = str(error).split("'")[1]
        return f"{given!r} is no override, which has the form key=value: condexp --help has some."
    key = getattr(error.__cause__, "full_key", None) or getattr(error, "full_key", None)
    lines = str(error).splitlines() or [type(error).__name__]
    if lines[0].startswith("profile appears more than once"):  # by conf/experiment/*.yaml
        return _not_for_this_experiment(args)
    if key and "Could not override" in lines[0]:
        from condexp.config.validation import unknown_key

        given = lines[0].split("'")[1]
        if given.startswith("hydra."):
            shown = "condexp run --cfg hydra, with the same hydra/… choices, shows those there are"
            return f"unknown key {given!r}: {shown}; +{given}=… adds one."
        return unknown_key(given, conf_dir())
    return f"the configuration cannot be composed: {' '.join(lines)}"


def _refuse_choice(file: str, options: Sequence[str]) -> None:
    group, _, given = file.rpartition("/")
    if (group, given) == ("hydra/launcher", "joblib"):  # what the extra brings
        raise InputError("hydra/launcher=local needs joblib: pip install 'condexp[local]'.")
    if group.startswith(("experiment/", "profile/")):  # an option below the group's own folder
        group, _, given = file.partition("/")
        known = own_profiles()
        if group == "profile" and given in known:
            raise InputError(f"profile={given} is no profile: give experiment={given} instead.")
        if group == "experiment":
            base = given.partition("/")[0]
            options = [name for name in known if name.startswith(f"{base}/")] or known
    if options:
        choose(group, given, options)


def _not_for_this_experiment(args: Sequence[str]) -> str:
    """Return how an experiment's own profile is given, where a general one was beside it."""
    given = dict(arg.lstrip("+").split("=", 1) for arg in args if "=" in arg)
    experiment, profile = given.get("experiment", "table1"), given.get("profile", "cpu")
    bases = dict.fromkeys(name.partition("/")[0] for name in experiment.split(","))
    names = [name.rpartition("/")[2] for name in profile.split(",")]
    own = ",".join(f"{base}/{name}" for base in bases for name in names)
    return (
        f"profile={profile} is for experiments that have no profiles of their own: give "
        f"experiment={own} instead."
    )
