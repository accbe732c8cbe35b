"""The checksums at the end of a results file, and a file object that hands out no other bytes.

HDF5 ignores what follows its own end. There stand the byte ranges that a run still writes, a CRC-32
of each 4 KiB block, in which those ranges count as zeros, and a footer. A damaged block is found
before HDF5 sees it: its arrays, attributes and scales are under a checksum, and so is its
structure, which HDF5 may follow for ever once it is damaged.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from condexp.errors import InputError
from condexp.store.hdf5.file_objects import PAGE_BYTES, READ_BYTES, ExactFile, SparseFile
from condexp.store.schema.fields import Axis

BLOCK = 1 << 12
AT_ONCE = 256  # blocks read together
MAX_RANGES = 1 << 14  # a run writes a few places for each kind of array
MAGIC = b"condexp\x03"
# Magic, bytes of the HDF5 file, number of ranges, rows committed (-1: it is being written), rows
# scheduled, CRC-32 of ranges and block checksums; then the CRC-32 of all this.
FOOTER = struct.Struct("<8sQQ6qI")
Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Trailer:
    """What follows the HDF5 file.

    Attributes:
        size: Bytes of the HDF5 file.
        written: The byte ranges ``(start, end)`` that a run writes, increasing; none once sealed.
        blocks: CRC-32 of each block.
        scheduled: Rows of the whole run.
        committed: Rows that the sealed file holds; None while a run writes it.
    """

    size: int
    written: Ranges
    blocks: NDArray[np.uint32]
    scheduled: Mapping[Axis, int]
    committed: Mapping[Axis, int] | None = None

    def to_bytes(self) -> bytes:
        """Return the bytes that are appended to the HDF5 file."""
        body = np.array(self.written, dtype="<u8").tobytes() + self.blocks.astype("<u4").tobytes()
        rows = [*(self.committed or dict.fromkeys(Axis, -1)).values(), *self.scheduled.values()]
        footer = FOOTER.pack(MAGIC, self.size, len(self.written), *rows, zlib.crc32(body))
        return body + footer + struct.pack("<I", zlib.crc32(footer))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the end of a results file; HDF5 is not asked.

        Args:
            path: The file.

        Returns:
            The trailer; None where there is no whole one.

        Raises:
            InputError: If the checksums themselves are damaged.
            OSError: If the file cannot be read.
        """
        with ExactFile(path, "r") as stream:
            return cls._read(stream, path)

    @classmethod
    def _read(cls, stream: ExactFile, path: Path) -> Self | None:
        length = FOOTER.size + 4
        end = stream.seek(0, 2)
        if end < length:
            return None
        stream.seek(end - length)
        footer = stream.read(length)
        magic, size, num_ranges, *rows, body_crc = FOOTER.unpack(footer[:-4])
        num_blocks = -(-size // BLOCK)
        body_bytes = 16 * num_ranges + 4 * num_blocks
        whole = struct.pack("<I", zlib.crc32(footer[:-4])) == footer[-4:]
        if magic != MAGIC or not whole or size + body_bytes + length != end:
            return None
        if num_ranges > MAX_RANGES or body_bytes > READ_BYTES:
            raise InputError(f"{path} is damaged: it has more checksums than a results file")
        stream.seek(size)
        body = stream.read(body_bytes)
        if zlib.crc32(body) != body_crc:
            raise InputError(f"{path} is damaged: its checksums are not what was written")
        ranges = np.frombuffer(body, "<u8", 2 * num_ranges).reshape(-1, 2).tolist()
        blocks = np.frombuffer(body, "<u4", num_blocks, 16 * num_ranges)
        committed = dict(zip(Axis, rows[:3], strict=True)) if rows[0] >= 0 else None
        written = [(start, stop) for start, stop in ranges]
        return cls(size, written, blocks, dict(zip(Axis, rows[3:], strict=True)), committed)


def skeleton_trailer(
    file: SparseFile, written: Iterable[tuple[int, int]], scheduled: Mapping[Axis, int]
) -> Trailer:
    """Return the trailer of a file that a run is to fill.

    Args:
        file: The file in memory; where the run will write, it holds zeros.
        written: The byte ranges ``(start, end)`` that the run will write.
        scheduled: Rows of the whole run.

    Returns:
        The trailer.
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted(written):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    buffer = bytearray(BLOCK)
    empty = zlib.crc32(buffer)
    num_blocks = -(-file.size // BLOCK)
    blocks = np.full(num_blocks, empty, dtype="<u4")
    last = file.size - (num_blocks - 1) * BLOCK
    per_block = BLOCK // PAGE_BYTES
    for block in {page // per_block for page in file.pages} | {num_blocks - 1}:
        file.seek(block * BLOCK)
        length = last if block == num_blocks - 1 else BLOCK
        file.readinto(memoryview(buffer)[:length])
        blocks[block] = zlib.crc32(memoryview(buffer)[:length])
    return Trailer(file.size, merged, blocks, scheduled)


def sealed_trailer(
    handle: int, size: int, committed: Mapping[Axis, int], scheduled: Mapping[Axis, int]
) -> Trailer:
    """Return the trailer of a file that nothing will be added to.

    Args:
        handle: Descriptor of the file.
        size: Its bytes.
        committed: Rows that it holds.
        scheduled: Rows of the whole run.

    Returns:
        The trailer.

    Raises:
        OSError: If the file cannot be read.
    """
    with ExactFile(handle, "r", closefd=False) as stream:
        stream.seek(0)
        blocks = [zlib.crc32(stream.read(min(BLOCK, size - at))) for at in range(0, size, BLOCK)]
    return Trailer(size, (), np.array(blocks, dtype="<u4"), scheduled, committed)


class CheckedFile(ExactFile):
    """A results file that is read block by block: no byte is handed out that is not as written.

    Attributes:
        trailer: Its checksums; None in files of earlier versions, which are read as they are.
        damage: What is wrong, once something was found.
        path: The file.

    Args:
        path: The file.

    Raises:
        InputError: If the checksums themselves are damaged.
        OSError: If there is no such file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r")
        self.damage: str | None = None
        try:
            self.trailer = Trailer._read(self, path)
        except BaseException:
            self.close()
            raise
        self.path = path
        if self.trailer is not None:
            self._is_good = np.zeros(len(self.trailer.blocks), dtype=bool)
            for start, end in self.trailer.written:  # nothing to compare there
                self._is_good[-(-start // BLOCK) : end // BLOCK] = True

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes read into a buffer, after comparing them with their checksums."""
        if self.trailer is not None:
            start = self.tell()
            length = memoryview(buffer).nbytes
            self._check(start // BLOCK, -(-(start + length) // BLOCK))
            self.seek(start)
        return super().readinto(buffer)

    def check_all(self) -> None:
        """Compare every block with its checksum.

        Raises:
            InputError: If one is not as written.
        """
        if self.trailer is not None:
            self._check(0, len(self.trailer.blocks))

    def _check(self, first: int, end: int) -> None:
        assert self.trailer is not None
        unknown = first + np.flatnonzero(~self._is_good[first:end])
        # Neighbours are read together.
        cuts = [0, *(np.flatnonzero(np.diff(unknown) > 1) + 1).tolist(), len(unknown)]
        for begin, stop in pairwise(cuts):
            for at in range(begin, stop, AT_ONCE):
                self._check_run(unknown[at : min(stop, at + AT_ONCE)])

    def _check_run(self, blocks: NDArray[np.int64]) -> None:
        """Check consecutive blocks.

        Raises:
            InputError: If one is not as written.
        """
        assert self.trailer is not None
        start = int(blocks[0]) * BLOCK
        end = min(self.trailer.size, (int(blocks[-1]) + 1) * BLOCK)
        data = memoryview(bytearray(end - start))
        self.seek(start)
        count = super().readinto(data)
        for low, high in self._written_within(start, end):
            data[low - start : high - start] = bytes(high - low)
        for number, block in enumerate(blocks.tolist()):
            content = data[number * BLOCK : (number + 1) * BLOCK]
            if count < len(data) or zlib.crc32(content) != int(self.trailer.blocks[block]):
                where = f"bytes {block * BLOCK} to {block * BLOCK + len(content) - 1}"
                self.damage = f"{self.path} is damaged: {where} do not match their checksum"
                raise InputError(self.damage)
            self._is_good[block] = True

    def _written_within(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        assert self.trailer is not None
        for low, high in self.trailer.written:
            if low < end and high > start:
                yield max(low, start), min(high, end)
