import gzip
from pathlib import Path

import pytest
import torch

from condexp.data.idx import read_idx
from condexp.errors import InputError
from tests.data.archives import idx_bytes

ARRAY = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)


@pytest.mark.parametrize("array", [ARRAY, ARRAY.flatten(), ARRAY[:0]])
def test_reads_plain_and_gzipped_files(tmp_path: Path, array: torch.Tensor) -> None:
    (tmp_path / "plain").write_bytes(idx_bytes(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx_bytes(array)))
    for name in ("plain", "packed.gz"):
        read = read_idx(tmp_path / name)
        assert read.dtype == torch.uint8
        assert torch.equal(read, array)


def test_agrees_with_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets.mnist import read_image_file

    (tmp_path / "images").write_bytes(idx_bytes(ARRAY))
    assert torch.equal(read_idx(tmp_path / "images"), read_image_file(str(tmp_path / "images")))


GOOD = idx_bytes(ARRAY)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short", GOOD[:-1], r"39 bytes.*promises 40 \(sizes \[2, 3, 4\]\)"),
        ("long", GOOD + b"\0", "41 bytes.*promises 40"),
        ("header", GOOD[:7], "7 bytes"),
        ("empty", b"", "starts with nothing"),
        ("text", b"<html>", "starts with 3c 68 74"),
        ("floats", b"\0\0\x0d\x01" + bytes(8), "starts with 00 00 0d"),
        ("cut.gz", gzip.compress(GOOD)[:-9], "can't be read"),
        ("flipped.gz", gzip.compress(GOOD)[:12] + bytes(8), "can't be read"),
        ("text.gz", b"<html>", "can't be read"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # gzip writes the time into them
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_idx(tmp_path / name)
