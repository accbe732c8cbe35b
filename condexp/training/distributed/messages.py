"""Objects on their way from one process to another: their tensors travel as they lie in memory."""

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SMALL = 1 << 15  # bytes of a tensor up to which it is pickled, for a message costs time by itself


def send(value: object, dst: int, group: dist.ProcessGroup) -> Callable[[], None]:
    """Begin to send an object; messages to one process arrive in the order they were sent in.

    Args:
        value: Any object that can be pickled; its tensors may be large and on a GPU, and must not
            change before all is sent.
        dst: The rank that receives it.
        group: The processes, joined by gloo.

    Returns:
        A function that waits until all is sent.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(value)
    text = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)
    parts = [torch.tensor(len(text)), text, *pickler.large]
    under_way = [(part, dist.isend(part, dst, group=group)) for part in parts]

    def wait() -> None:
        for _part, work in under_way:
            if work is not None:
                work.wait()

    return wait


def receive(src: int, group: dist.ProcessGroup, device: torch.device) -> Any:
    """Receive the next object that a process sends.

    Args:
        src: The rank that sends it.
        group: The processes, joined by gloo.
        device: Where tensors go that were on a device of the sender's; those of the CPU stay there,
            as random states must.

    Returns:
        The object. The ranks run the same program and trust each other: it may be any.
    """

    def fill(tensor: Tensor) -> None:
        dist.recv(tensor, src, group=group)

    size = torch.tensor(0)
    fill(size)
    text = torch.empty(int(size), dtype=torch.uint8)
    fill(text)
    return _Unpickler(io.BytesIO(text.numpy().data), fill, device).load()


class _Pickler(pickle.Pickler):
    """Pickles an object but for its large tensors, which are to follow in their order."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=5)
        self.large: list[Tensor] = []

    def persistent_id(self, value: object) -> Any:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return None
        numbers = _as_bytes(value.detach().cpu().contiguous())
        about = value.dtype, tuple(value.shape), value.device.type == "cpu"
        if len(numbers) <= _SMALL:
            return *about, numbers.numpy().tobytes()
        self.large.append(numbers)
        return *about, None


class _Unpickler(pickle.Unpickler):
    """Restores what a :class:`_Pickler` has pickled; ``fill`` receives a large tensor."""

    def __init__(
        self, stream: io.BytesIO, fill: Callable[[Tensor], None], device: torch.device
    ) -> None:
        super().__init__(stream)
        self._fill, self._device = fill, device

    def persistent_load(self, pid: Any) -> Tensor:
        dtype, shape, on_cpu, given = pid
        tensor = torch.empty(shape, dtype=dtype)
        if given is None:
            self._fill(_as_bytes(tensor))
        elif given:
            _as_bytes(tensor).copy_(torch.frombuffer(bytearray(given), dtype=torch.uint8))
        return tensor if on_cpu else tensor.to(self._device)


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
