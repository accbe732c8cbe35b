"""Where the presets lie, and which of them were chosen."""

from collections.abc import Sequence
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
        The experiment's name, or ``default``, and the profile's: ``smoke``, also where the
        experiment has one of its own.
    """
    choices = hydra_config.runtime.choices
    profile = choices.get("profile")
    return {
        "experiment": str(choices.get("experiment") or "default"),
        "profile": str(profile).rpartition("/")[2] if profile else None,
    }


def with_own_profile(args: Sequence[str]) -> list[str]:
    """Let ``profile=P`` stand for the experiment's own, where there is ``conf/profile/E/P.yaml``.

    Hydra admits no ``override /dataset`` in a file that is chosen by another group's choice, so
    the choice is made before Hydra sees it.

    Args:
        args: Hydra's arguments.

    Returns:
        The same, with ``profile=E/P`` for ``profile=P`` beside ``experiment=E``.
    """
    given = dict(arg.split("=", 1) for arg in args if "=" in arg)
    own = f"{given.get('experiment')}/{given.get('profile')}"
    there = (conf_dir() / "profile" / f"{own}.yaml").is_file()
    return [f"profile={own}" if there and arg.startswith("profile=") else arg for arg in args]
