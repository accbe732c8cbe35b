"""A checkpoint: everything that a run's next step depends on; reading one executes no code."""

import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
KEYS = ("model", "optimizer", "random", "step", "epoch", "position", "committed", "config_sha256",
        "data_sha256", "state")  # fmt: skip
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch before 1.6; now a zip archive
MOST_KEYS = 6  # of a file of somebody else's, in a message
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
        eigenvectors: Those from which the next snapshot's search starts, by matrix and block.
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
    eigenvectors: Mapping[str, Tensor] = field(default_factory=dict)

    def write(self, stream: Stream) -> None:
        """Write the file's bytes; the same state gives the same ones.

        Args:
            stream: Takes them. (A path's name would be written into the archive.)
        """
        names = ("model", "optimizer", "random", "step", "epoch", "position", "state", "others")
        content = {name: getattr(self, name) for name in (*names, "config_sha256", "data_sha256")}
        if self.eigenvectors:  # else the bytes are those of a run without
            content["eigenvectors"] = dict(self.eigenvectors)
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
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    try:
        content = load_plain(path)
    except InputError as error:
        raise InputError(f"{path} is damaged or not a checkpoint of condexp: {error}") from error
    found = content if isinstance(content, Mapping) else {}
    if lacking := [name for name in ("version", *KEYS) if name not in found]:
        raise InputError(
            f"{path} is damaged or not a checkpoint of condexp: it lacks {lacking[0]}; it holds "
            f"{shown_content(content)}"
        )
    if found["version"] not in READABLE:
        raise InputError(
            f"{path} has version {found['version']}; this condexp reads version {VERSION}"
        )
    if not sealed and found["version"] > 1:
        raise InputError(f"{path} is damaged: its end, with the checksum, is missing")
    try:
        return Checkpoint(
            model=found["model"],
            optimizer=found["optimizer"],
            random=found["random"],
            step=int(found["step"]),
            epoch=int(found["epoch"]),
            position=int(found["position"]),
            committed=RowCounts(**found["committed"]),
            config_sha256=found["config_sha256"],
            data_sha256=found["data_sha256"],
            state=RunState(found["state"]),
            others=found.get("others", ()),
            eigenvectors=found.get("eigenvectors", {}),
        )
    # Whoever wrote it may have written anything under these names.
    except Exception as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path} is damaged or not a checkpoint of condexp: {said[0]}") from error


def load_plain(path: Path) -> Any:
    """Read a file that ``torch.save`` wrote; nothing in it is executed (``weights_only=True``).

    Args:
        path: The file.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        InputError: If it cannot be read, is another kind of file, or holds what would have to be
            executed: why, to follow the file's name. Torch's own advice, to execute it all the
            same, is not passed on.
    """
    try:
        with path.open("rb") as file:
            is_torch = zipfile.is_zipfile(path) or file.read(len(OLD_FORMAT)) == OLD_FORMAT
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from error
    if not is_torch:
        raise InputError("it is no file that torch.save wrote, or is cut short")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can make torch fail in any way.
    except Exception as error:
        refused = "weights_only" in str(error).lower() or "weights only" in str(error).lower()
        what = "it holds more than tensors and plain values, which is never executed"
        raise InputError(what if refused else "its content is damaged") from error


def shown_content(content: object) -> str:
    """Say what a file holds, in a few words.

    Args:
        content: What was read.

    Returns:
        The first keys of a mapping, or the type.
    """
    if not isinstance(content, Mapping):
        return f"one object of type {type(content).__name__}"
    keys = [str(key) for key in content]
    more = f", … ({len(keys)} keys)" if len(keys) > MOST_KEYS else ""
    return f"{', '.join(keys[:MOST_KEYS]) or 'nothing'}{more}"


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
