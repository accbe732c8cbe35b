"""A checkpoint: everything that a run's next step depends on; reading one executes no code."""

import hashlib
import io
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.training.choices import RunState
from condexp.training.events import RowCounts
from condexp.training.seeding import restore_random_state

VERSION = 2
"""The version that is written: 2 ends with a checksum."""
READABLE = (1, 2)
SEAL = b"sha256: "  # then the digest of all before; a reader of zip archives passes over both


class Stream(Protocol):
    """Where bytes are written one after the other."""

    def write(self, data: bytes, /) -> int:
        """Take some bytes."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two updates; the file is a dictionary with these keys, and ``version``.

    The learning rate is a function of the step, and so are the batches of (seed, epoch, position):
    neither has a state of its own.

    Attributes:
        model: The model's state dict, parameters and buffers.
        optimizer: The optimizer's state dict.
        random: The states of the global generators.
        step: Number of finished updates.
        epoch: The epoch of the next update.
        position: Batches of that epoch that are behind.
        committed: The rows of the results file that belong to the finished updates.
        config_sha256: Of the identity configuration as YAML.
        data_sha256: Checksum of the data set.
        state: Whether there is more to train; a finished run lacks its last files only.
        others: As ``random``, of the processes from rank 1 on.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    random: Mapping[str, Any]
    step: int
    epoch: int
    position: int
    committed: RowCounts
    config_sha256: str
    data_sha256: str
    state: RunState
    others: tuple[Mapping[str, Any], ...] = ()

    def write(self, stream: Stream) -> None:
        """Write the file's bytes; the same state gives the same ones.

        Args:
            stream: Takes them. (A path's name would be written into the archive.)
        """
        names = ("model", "optimizer", "random", "step", "epoch", "position", "state", "others")
        content = {name: getattr(self, name) for name in (*names, "config_sha256", "data_sha256")}
        content |= {"version": VERSION, "committed": asdict(self.committed)}
        hashing = _HashingStream(stream)
        # Texts read from a file are other objects than the program's own.
        torch.save(_interned(content), hashing)  # type: ignore[arg-type]  # it only writes
        stream.write(SEAL + hashing.digest())

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0) -> None:
        """Put model, optimizer and the global generators in this state.

        Args:
            model: Of the same architecture, on its device.
            optimizer: Over the model's parameters.
            rank: Which of the run's processes this is.

        Raises:
            InputError: If they are not those of this checkpoint.
        """
        try:
            model.load_state_dict(self.model)
            optimizer.load_state_dict(dict(self.optimizer))
            restore_random_state((self.random, *self.others)[rank])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split()).rstrip(".")  # torch's runs over many lines
            raise InputError(
                f"the checkpoint is of another network or optimizer: {said}. Give "
                "run.on_existing=restart to run the experiment anew."
            ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed (``weights_only=True``).

    Args:
        path: The file.

    Returns:
        The checkpoint, its tensors on the CPU.

    Raises:
        InputError: If there is no such file, or it is damaged or not a checkpoint of condexp.
    """
    try:
        sealed = _check_digest(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] not in READABLE:
            raise InputError(
                f"{path} has version {content['version']}; this condexp reads version {VERSION}"
            )
        if not sealed and content["version"] > 1:
            raise InputError(f"{path} is damaged: its end, with the checksum, is missing")
        return Checkpoint(
            model=content["model"],
            optimizer=content["optimizer"],
            random=content["random"],
            step=int(content["step"]),
            epoch=int(content["epoch"]),
            position=int(content["position"]),
            committed=RowCounts(**content["committed"]),
            config_sha256=content["config_sha256"],
            data_sha256=content["data_sha256"],
            state=RunState(content["state"]),
            others=content.get("others", ()),
        )
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    except InputError:
        raise
    # A damaged file can make torch, and whatever reads its numbers, fail in any way.
    except Exception as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path} is damaged or not a checkpoint of condexp: {said[0]}") from error


class _HashingStream(io.RawIOBase):
    """Passes bytes on, and remembers their SHA-256."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream, self._hash = stream, hashlib.sha256()

    # A buffer's type has no name before Python 3.12.
    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        self._hash.update(data)
        return self._stream.write(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _check_digest(path: Path) -> bool:
    """Return whether a file ends with its checksum.

    Raises:
        InputError: If it does, and the checksum is of something else.
    """
    length = len(SEAL) + hashlib.sha256().digest_size
    with path.open("rb") as file:
        left = file.seek(0, 2) - length
        if left < 0:
            return False
        file.seek(left)
        end = file.read()
        if not end.startswith(SEAL):
            return False
        file.seek(0)
        found = hashlib.sha256()
        while left:
            piece = file.read(min(left, 1 << 20))
            found.update(piece)
            left -= len(piece)
    if found.digest() != end[len(SEAL) :]:
        raise InputError(f"{path} is damaged: its bytes do not match their checksum")
    return True


def _interned(content: Any) -> Any:
    """Return the same content with every text one object: pickle writes an object once."""
    if isinstance(content, str):
        return sys.intern(str(content))
    if type(content) is dict:
        return {_interned(key): _interned(value) for key, value in content.items()}
    if type(content) in {list, tuple}:
        return type(content)(map(_interned, content))
    return content
