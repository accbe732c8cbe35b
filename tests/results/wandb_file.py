"""An offline file of Weights & Biases: records of protobuf in the log format of LevelDB."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

HEADER, BLOCK, PREFIX = 7, 1 << 15, struct.Struct("<IHB")  # checksum, length, kind of fragment
LAST_FRAGMENTS = {1, 4}  # a record in one piece, and the end of one in several


def _records(path: Path) -> Iterator[bytes]:
    data, place, record = path.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while place + PREFIX.size <= len(data):
        if BLOCK - place % BLOCK < PREFIX.size:
            place += BLOCK - place % BLOCK  # no room for a fragment
            continue
        _, length, kind = PREFIX.unpack_from(data, place)
        place += PREFIX.size
        record += data[place : place + length]
        place += length
        if kind in LAST_FRAGMENTS:
            yield record
            record = b""


def read_offline(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The record of the run itself, and the rows that were logged."""
    protocol: Any = import_module("wandb.proto.wandb_internal_pb2")
    run, rows = None, []
    for content in _records(path):
        record = protocol.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "run":
            run = run or record.run
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({
                ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items
            })
    return run, rows
