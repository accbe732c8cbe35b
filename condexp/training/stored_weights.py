"""State dicts of any origin: found in a file, matched with a network; nothing is executed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condexp.errors import InputError, near_path
from condexp.training.checkpoint import load_plain, shown_content

HOLDERS = ("model", "state_dict", "model_state_dict", "module")
STEPS = ("step", "global_step", "num_updates")
SHOWN = 5


@dataclass(frozen=True)
class StoredWeights:
    """The weights that a file holds.

    Attributes:
        path: The file.
        step: Number of finished updates.
        tensors: Parameters and buffers by name, on the CPU.
    """

    path: Path
    step: int
    tensors: Mapping[str, Tensor]

    def matched(self, model: nn.Module) -> dict[str, Tensor]:
        """Match the names with those of a network.

        What stands before all names alike (``module.``, ``model.``, ``net.``) and the compiler's
        ``_orig_mod.`` are taken away; what else a file holds beside the network is left out. A
        BatchNorm's count of batches may be missing, as in files of old.

        Args:
            model: The network.

        Returns:
            A state dict that ``model.load_state_dict`` takes.

        Raises:
            InputError: If names are missing or unexpected, or shapes differ: which.
        """
        wanted = model.state_dict()
        given = {name.replace("_orig_mod.", ""): t for name, t in self.tensors.items()}
        prefix = _prefix(given, wanted)
        given = {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}
        missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
        unexpected = [name for name in given if name not in wanted]
        other = [
            f"{name} {list(tensor.shape)} in place of {list(wanted[name].shape)}"
            for name, tensor in given.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ]
        found = {"missing": missing, "unexpected": unexpected, "of another shape": other}
        if said := [f"{what}: {_listed(names)}" for what, names in found.items() if names]:
            raise InputError(
                f"{self.path} holds the weights of another network: {'; '.join(said)}. Give the "
                "overrides of the network that was trained (model=..., dataset=...)."
            )
        return {**wanted, **given}


def read_stored_weights(path: Path) -> StoredWeights:
    """Read a state dict, or a file that holds one (``weights_only=True``).

    Args:
        path: A state dict, or a mapping that holds one under ``model``, ``state_dict``,
            ``model_state_dict`` or ``module``; the step is its ``step`` or ``global_step``, or the
            last number in the file's name.

    Returns:
        The weights.

    Raises:
        InputError: If there is no such file, it holds no state dict or something that would have to
            be executed, or the step is nowhere.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give files, such as {path / 'checkpoint.pt'}.")
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}.{near_path(path)}")
    try:
        content = load_plain(path)
    except InputError as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint: {error}. Save the state dict "
            "alone: torch.save(model.state_dict(), 'step-100.pt')."
        ) from error
    tensors = _state_dict(content)
    if tensors is None:
        raise InputError(
            f"{path} holds no state dict: found {shown_content(content)}; give one, or a file that "
            f"has it under {' or '.join(HOLDERS)}."
        )
    return StoredWeights(path, _step(path, content), tensors)


def _state_dict(content: Any) -> Mapping[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for inner in (content, *(content.get(key) for key in HOLDERS)):
        if isinstance(inner, Mapping) and inner:
            tensors = {k: v for k, v in inner.items() if isinstance(v, Tensor)}
            if len(tensors) == len(inner):
                return tensors
    return None


def _step(path: Path, content: Mapping[str, Any]) -> int:
    for key in STEPS:
        if isinstance(content.get(key), int):
            return int(content[key])
    numbers = re.findall(r"\d+", path.stem)
    if not numbers:
        raise InputError(
            f"{path}: neither its content ({', '.join(STEPS)}) nor its name tells the step: rename "
            "it to step-<number>.pt."
        )
    return int(numbers[-1])


def _prefix(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return what stands before the network's names in a file; the one that most names have."""
    first = next(iter(wanted))
    prefixes = ["", *(name.removesuffix(first) for name in given if name.endswith(f".{first}"))]
    return max(prefixes, key=lambda prefix: sum(prefix + name in given for name in wanted))


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
