import hashlib

import pytest
import torch

from condexp.data.dataset import Split, checksum_of

SPLIT = Split(torch.arange(6, dtype=torch.uint8).view(2, 3), torch.tensor([1, 0]))


def test_checksum_is_that_of_shape_dtype_and_bytes() -> None:
    content = b"(2, 3) torch.uint8;" + bytes(range(6))
    content += b"(2,) torch.int64;" + bytes([1]) + bytes(15)
    assert checksum_of(SPLIT) == hashlib.sha256(content).hexdigest()


def test_checksum_sees_every_difference_but_the_layout() -> None:
    inputs, targets = SPLIT.inputs, SPLIT.targets
    others = [
        Split(inputs.view(2, 1, 3), targets),
        Split(inputs.view(torch.int8), targets),
        Split(inputs, targets.flip(0)),
        Split(inputs.flip(1), targets),
    ]
    assert len({checksum_of(split) for split in [SPLIT, *others]}) == 5
    assert checksum_of(SPLIT, others[0]) != checksum_of(others[0], SPLIT)
    transposed = Split(inputs.T.contiguous().T, targets)
    assert checksum_of(transposed) == checksum_of(SPLIT)


def test_select_keeps_the_order_of_the_indices() -> None:
    chosen = SPLIT.select(torch.tensor([1, 0, 1]))
    assert chosen.targets.tolist() == [0, 1, 0]
    assert chosen.inputs[:, 0].tolist() == [3, 0, 3]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 inputs, but 3 targets"):
        Split(torch.zeros(2, 1), torch.zeros(3))
