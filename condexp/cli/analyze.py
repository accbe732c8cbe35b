"""``condexp analyze``: stored checkpoints of any training, measured as one run."""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from condexp.cli.hydra_app import with_hydra
from condexp.config.presets import chosen_presets
from condexp.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = "condexp analyze CHECKPOINT… [overrides], as in condexp analyze step-*.pt model=resnet"

# Hydra's options that a word belongs to.
WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-cd", "--config-dir", "-cp", "--config-path",
              "-cn", "--config-name", "-i", "--info")  # fmt: skip


def run(args: list[str]) -> int:
    """Measure stored checkpoints.

    Args:
        args: Files, and Hydra's arguments.

    Returns:
        The exit code.

    Raises:
        InputError: If no file is given, the configuration is wrong, or a file cannot be used.
    """
    before = ["", *args]
    paths = [Path(arg) for arg, last in zip(args, before, strict=False) if _is_path(arg, last)]
    rest = [arg for arg, last in zip(args, before, strict=False) if not _is_path(arg, last)]
    if any(arg.startswith(("-m", "--mu", "hydra.mode=")) for arg in rest):
        raise InputError("condexp analyze makes one run: leave out -m.")
    if not paths and not {"-h", "--help", "--cfg", "-c"} & {*rest}:
        raise InputError(f"condexp analyze needs checkpoints: {USAGE}")

    def task(composed: "DictConfig") -> None:
        from condexp.config.validation import parse_config
        from condexp.runs.analyze_checkpoints import analyze_checkpoints
        from condexp.runs.progress import show_result

        config = parse_config(composed, **chosen_presets(HydraConfig.get()))
        show_result(analyze_checkpoints(config, paths))

    return with_hydra(task, rest)


def _is_path(arg: str, before: str) -> bool:
    if before in WITH_VALUE:
        return False
    return not arg.startswith(("-", "+", "~")) and ("=" not in arg or Path(arg).is_file())
