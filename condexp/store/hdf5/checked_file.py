"""The checksums at the end of a results file, and a file object that hands out no other bytes.

HDF5 ignores what follows its own end. There stand the byte ranges that a run still writes, a CRC-32
of each 4 KiB block, in which those ranges count as zeros, and a footer. A damaged block is found
before HDF5 sees it: its arrays, attributes and scales are under a checksum, and so is its
structure, which HDF5 may follow for ever once it is damaged.
"""

import os
import struct
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from condexp.errors import DamageError
from condexp.store.hdf5.crc import crc32
from condexp.store.hdf5.file_objects import PAGE_BYTES, READ_BYTES, ExactFile, SparseFile
from condexp.store.schema.fields import Axis

BLOCK = 1 << 12
PIECE = 1 << 20  # read at once where all is
SMALL = 1 << 20  # a sealed file that is read whole: HDF5 asks for some 60 pieces of it
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
        footer = FOOTER.pack(MAGIC, self.size, len(self.written), *rows, crc32(body))
        return body + footer + struct.pack("<I", crc32(footer))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the end of a results file; HDF5 is not asked.

        Args:
            path: The file.

        Returns:
            The trailer; None where there is no whole one.

        Raises:
            DamageError: If the checksums themselves are damaged.
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
        whole = struct.pack("<I", crc32(footer[:-4])) == footer[-4:]
        if magic != MAGIC or not whole or size + body_bytes + length != end:
            return None
        if num_ranges > MAX_RANGES or body_bytes > READ_BYTES:
            raise DamageError(f"{path} is damaged: it has more checksums than a results file")
        stream.seek(size)
        body = stream.read(body_bytes)
        if crc32(body) != body_crc:
            raise DamageError(f"{path} is damaged: its checksums are not what was written")
        ranges = np.frombuffer(body, "<u8", 2 * num_ranges).reshape(-1, 2).tolist()
        blocks = np.frombuffer(body, "<u4", num_blocks, 16 * num_ranges)
        committed = dict(zip(Axis, rows[:3], strict=True)) if rows[0] >= 0 else None
        written = [(start, stop) for start, stop in ranges]
        if any(low > high for low, high in pairwise([0, *chain(*written), size])):
            raise DamageError(f"{path} is damaged: its checksums leave out what is no part of it")
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
    empty = crc32(buffer)
    num_blocks = -(-file.size // BLOCK)
    blocks = np.full(num_blocks, empty, dtype="<u4")
    last = file.size - (num_blocks - 1) * BLOCK
    per_block = BLOCK // PAGE_BYTES
    for block in {page // per_block for page in file.pages} | {num_blocks - 1}:
        file.seek(block * BLOCK)
        length = last if block == num_blocks - 1 else BLOCK
        file.readinto(memoryview(buffer)[:length])
        blocks[block] = crc32(memoryview(buffer)[:length])
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
        blocks = [crc32(stream.read(min(BLOCK, size - at))) for at in range(0, size, BLOCK)]
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
        DamageError: If the checksums themselves are damaged.
        OSError: If there is no such file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r")
        self.damage: str | None = None
        self._content = b""
        try:
            self.trailer = Trailer._read(self, path)
        except BaseException:
            self.close()
            raise
        self.path = path
        if self.trailer is not None:
            self._is_good = bytearray(len(self.trailer.blocks))
            for start, end in self.trailer.written:  # nothing to compare there
                first, last = -(-start // BLOCK), end // BLOCK
                self._is_good[first:last] = b"\1" * max(0, last - first)
            if self.trailer.committed is not None and self.trailer.size <= SMALL:
                self._content = self._all_good(self.trailer)

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes read into a buffer, after comparing them with their checksums."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        if self._content:
            count = len(self._content[start : start + len(view)])
            view[:count] = self._content[start : start + count]
            self.seek(start + count)
            return count
        count = super().readinto(view)
        if self.trailer is not None:
            self._check(self.trailer, start, view[:count])
        return count

    def _all_good(self, trailer: Trailer) -> bytes:
        """Return the content of the file; nothing where a block is not as written."""
        content = os.pread(self.fileno(), trailer.size, 0)
        blocks = [crc32(content[at : at + BLOCK]) for at in range(0, trailer.size, BLOCK)]
        return content if np.array_equal(blocks, trailer.blocks) else b""

    def check_all(self) -> None:
        """Compare every block with its checksum, if there are any.

        Raises:
            DamageError: If one is not as written.
        """
        if self.trailer is None:
            return  # and nothing to read: it may be said to have any length
        self.seek(0)
        buffer = bytearray(PIECE)
        while self.readinto(buffer):
            pass

    def _check(self, trailer: Trailer, start: int, data: memoryview) -> None:
        """Check the blocks that were read, whole or in part, but those that were before.

        Raises:
            DamageError: If one is not as written.
        """
        first = start // BLOCK
        last = min(-(-(start + len(data)) // BLOCK), len(trailer.blocks))
        if 0 not in self._is_good[first:last]:
            return
        begin = -(-start // BLOCK)  # the first block of which the beginning was asked for
        expected = trailer.blocks[begin:last].tolist()
        places = range(begin * BLOCK - start, len(data), BLOCK)[: len(expected)]
        found = [crc32(data[at : at + BLOCK]) for at in places]
        unsure = [*range(first, min(begin, last))]
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=True), begin)
            unsure += [block for block, (one, other) in pairs if one != other]
        for block in unsure:
            if self._is_good[block]:
                continue
            # Not all of it was asked for, a run writes a part of it, or it is damaged.
            low, high = block * BLOCK, min((block + 1) * BLOCK, trailer.size)
            content: bytes | bytearray = os.pread(self.fileno(), high - low, low)
            if trailer.written:
                content = _as_created(content, low, trailer.written)
            if crc32(content) != trailer.blocks[block] or len(content) < high - low:
                where = f"bytes {low} to {high - 1}"
                self.damage = f"{self.path} is damaged: {where} do not match their checksum"
                raise DamageError(self.damage)
        self._is_good[first:last] = b"\1" * (last - first)


def _as_created(content: bytes | bytearray, low: int, written: Ranges) -> bytearray:
    """Return the bytes from ``low`` on with zeros where a run writes."""
    created = bytearray(content)
    for start, end in written[max(0, bisect(written, (low, 0)) - 1) :]:
        if start >= low + len(content):
            break
        part = slice(max(start - low, 0), max(end - low, 0))
        created[part] = bytes(len(created[part]))
    return created
