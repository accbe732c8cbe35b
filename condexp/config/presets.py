"""Where the presets lie, and which of them were chosen."""

from pathlib import Path
from typing import TypedDict

from hydra.conf import HydraConf

from condexp.errors import InputError


def conf_dir() -> Path:
    """Find the configuration files: beside the package in a checkout, inside it in a wheel.

    Returns:
        The absolute path of ``conf/``.

    Raises:
        InputError: If the installation has none.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"no conf/ beside or in {package}: reinstall condexp.")


class Presets(TypedDict):
    """The names of the chosen presets; no profile is None."""

    experiment: str
    profile: str | None


def chosen_presets(hydra_config: HydraConf) -> Presets:
    """Name the experiment and the profile that were chosen.

    Args:
        hydra_config: The composed ``hydra`` node.

    Returns:
        The experiment's name, or ``default``, and the profile's: ``table1`` and ``cpu`` of
        ``experiment=table1/cpu``.

    Raises:
        InputError: If both choices name a profile.
    """
    choices = hydra_config.runtime.choices
    experiment, profile = str(choices.get("experiment") or "default"), choices.get("profile")
    base, _, own = experiment.rpartition("/")
    _require_package(hydra_config, experiment)
    sources = [s for s in hydra_config.runtime.config_sources if s.schema == "file"]
    # A user's folder of experiments, with none of the folder's name, is part of their names.
    if any(Path(s.path, "experiment", f"{base}.yaml").is_file() for s in sources):
        if profile:
            raise InputError(
                f"experiment={experiment} names its profile already: leave out profile={profile}."
            )
        experiment, profile = base, own
    return {"experiment": experiment, "profile": profile}


def _require_package(hydra_config: HydraConf, experiment: str) -> None:
    """Refuse an experiment whose file does not say that its keys are those of the whole.

    Raises:
        InputError: If the first line is another.
    """
    for source in hydra_config.runtime.config_sources:
        file = Path(source.path, "experiment", f"{experiment}.yaml")
        if source.schema == "file" and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            headers = [line for line in lines if line.startswith("#")]
            if "# @package _global_" not in [" ".join(line.split()) for line in headers]:
                marked = lines[:1] and lines[0].startswith("\ufeff")
                mark = " without the byte-order mark before it" if marked else ""
                raise InputError(
                    f"{file}, line 1: an experiment begins with '# @package _global_'{mark}."
                )
            return


def own_profiles() -> list[str]:
    """List the profiles that experiments have of their own.

    Returns:
        Names such as ``table1/cpu``.
    """
    files = (conf_dir() / "experiment").glob("*/*.yaml")
    return sorted(f"{path.parent.name}/{path.stem}" for path in files)
