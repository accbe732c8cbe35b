"""Run folders that somebody made to break, blind or fool whoever reads them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from condexp.store.hdf5.checked_file import sealed_trailer
from condexp.store.schema.fields import Axis

ESCAPES = "\x1b[2J\x1b]0;owned\x07[/red][link=http://x]\r\x9b31m\u202e"
WORDS: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**17, 10**30, 1e308, float("nan"), float("inf")),
    *(ESCAPES, "", "x" * 5000, "=1+1", "a\nb", "\ud800"),
    *([], {}, [[1]], {"a": [1]}, [None, "x"], "0001-01-01T00:00:00+23:59", "9999-12-31"),
)


def odd_files(noise: random.Random) -> list[Callable[[Path], None]]:
    """What may stand in the place of any file."""

    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(1 << 33)

    return [
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/tty"),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("nowhere"),
        sparse,
        lambda path: path.write_bytes(noise.randbytes(3000)),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe{}"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text('{"a":' * 50_000),
    ]


def odd_status(noise: random.Random) -> str:
    good: dict[str, Any] = {
        "state": noise.choice(["complete", "running", "failed", "complete"]),
        "step": 6,
        "num_steps": 6,
        "seconds": 1.0,
        "host": "elsewhere",
        "updated": "2026-01-01T00:00:00+00:00",
        "pid": 1,
        "started": "2026-01-01T00:00:00+00:00",
    }
    keys = [*good, "error", "test_error", "best_test_error", "attempts", "epoch", "spam"]
    for _ in range(noise.choice([1, 1, 3])):
        good[noise.choice(keys)] = noise.choice(WORDS)
    return json.dumps(good)


def odd_config(noise: random.Random, good: str) -> str:
    laughs = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12))
    texts = [
        f"l0: &l0 [a, b]\n{laughs}\nmodel: {{x: *l11}}\n",
        "model: &m {m: *m}\n",
        "model: !!python/object/apply:os.system ['touch owned']\n",
        "- 1\n- 2\n",
        "model: 5\ndataset: [1]\nseed: {a: 1}\n",
        "model: {name: 2020-01-01}\n",
        "state: complete\npath: /etc\ntest_error: 0.0\n",
        "model: {" + ", ".join(f"k{i}: {i}" for i in range(20_000)) + "}\n",
        "model: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
        good.replace("include:", "exclude:").replace("- all", "- 5"),
        good.replace("train: null", "train: many"),
        good.replace("seed: 1", "seed: [1, {a: b}]"),
        good.replace("name: mlp", f"name: {json.dumps(ESCAPES)}"),
        good.replace("name: mlp", "name: '=cmd()'"),
        good.replace("name: digits", "name: '<script>alert(1)</script>|](x)'"),
        good.replace("depth: 3", "depth: {a: 1}"),
        good.replace("depth: 3", "fc.input_kappa_0.5: 3"),
    ]
    return noise.choice(texts)


def odd_results(noise: random.Random, path: Path) -> None:
    """Change a good results file into a crafted one."""
    names: list[str] = []
    with h5py.File(path, "r+") as file:
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        favourites = ["layers/layer", "n_committed", "config", "layers/type", "step", "layers/p"]
        name = noise.choice([*names, *favourites])
        group, _, own = name.rpartition("/")
        parent = file[group] if group else file
        _craft(noise, file, parent, own)
    _sign(noise, path)
    if noise.random() < 0.1:
        content = path.read_bytes()
        path.write_bytes(content[: noise.randrange(len(content))])
    elif noise.random() < 0.2:
        changed = bytearray(path.read_bytes())
        for _ in range(noise.choice([1, 10, 100])):
            changed[noise.randrange(min(len(changed), 4000))] = noise.randrange(256)
        path.write_bytes(changed)


def _sign(noise: random.Random, path: Path) -> None:
    """Let a crafted file pass for an older one, or give it the checksums of what it holds."""
    way = noise.random()
    if way < 0.4:
        with h5py.File(path, "r+") as file:
            file.attrs["condexp_format_version"] = noise.choice([1, 2])
    elif way < 0.9:
        with path.open("r+b") as stored:
            size = stored.seek(0, os.SEEK_END)
            rows = dict.fromkeys(Axis, noise.choice([0, 3, 10**9]))
            stored.write(sealed_trailer(stored.fileno(), size, rows, rows).to_bytes())


def _virtual(parent: h5py.Group, own: str) -> None:
    layout = h5py.VirtualLayout((100,), "f8")
    layout[:] = h5py.VirtualSource(parent.file.filename, "spam", (100,))
    parent.create_virtual_dataset(own, layout)


def _link(target: object) -> Callable[[h5py.Group, str], None]:
    return lambda parent, own: parent.__setitem__(own, target)


def _array(*args: Any, **options: Any) -> Callable[[h5py.Group, str], None]:
    return lambda parent, own: parent.create_dataset(own, *args, **options)


def _bomb(*shape: int) -> Callable[[h5py.Group, str], None]:
    """A compressed array, a thousand times as large as its file."""

    def craft(parent: h5py.Group, own: str) -> None:
        chunks = (*[1] * (len(shape) - 1), shape[-1] >> (4 if len(shape) == 1 else 0))
        parent.create_dataset(own, shape, "f8", chunks=chunks, compression="gzip")[...] = 0

    return craft


CRAFTED: list[Callable[[h5py.Group, str], object]] = [
    _link(h5py.SoftLink("/config")),
    _link(h5py.SoftLink(".")),
    _link(h5py.ExternalLink("/etc/passwd", "/")),
    _link(h5py.ExternalLink("results.h5", "/step")),
    lambda parent, own: parent.__setitem__(own, parent),
    lambda parent, own: parent.create_group(own),
    _virtual,
    _array((100,), "f8", external=[("/etc/passwd", 0, 800)]),
    _array((10**12,), "f8", chunks=(1 << 17,)),
    _array((10**11, 4), "f8"),
    _array((3,), [("a", "f8"), ("b", "i4")]),
    _array((3,), h5py.vlen_dtype("f8")),
    _array((1000,), "f8", chunks=(100,), compression="lzf"),
    _bomb(1 << 23),
    _bomb(3, 1 << 19),
    _bomb(3, 3, 1 << 19),
    *(_array((8,) * rank, kind) for rank in range(5) for kind in ("S9", "c16", "i8", "f8")),
]


def _craft(noise: random.Random, file: h5py.File, parent: h5py.Group, own: str) -> None:
    if noise.random() < 0.7:
        del parent[own]
        noise.choice(CRAFTED)(parent, own)
    elif h5py.check_string_dtype(parent[own].dtype):
        parent[own][...] = noise.choice([ESCAPES, "=1+1", "", "x" * 100_000, "<b>|"])
    elif parent[own].shape == ():
        parent[own][()] = noise.choice([10**12, -1, 0, 2**62, 7])
    else:
        file.attrs[noise.choice([*file.attrs])] = noise.choice([10**9, ESCAPES, b"\xff", 0, -3])


def make_hostile(folder: Path, good: Path, seed: int) -> Path:
    """A copy of a good run with one or several of its files replaced."""
    noise = random.Random(seed)
    shutil.copytree(good, folder)
    odd = odd_files(noise)
    for name in noise.sample(["status.json", "config.yaml", "provenance.json", "results.h5"], 2):
        path = folder / name
        if noise.random() < 0.35:
            path.unlink(missing_ok=True)
            noise.choice(odd)(path)
        elif name == "status.json":
            path.write_text(odd_status(noise))
        elif name == "config.yaml":
            path.write_text(odd_config(noise, (good / name).read_text()))
        elif name == "provenance.json":
            key = noise.choice(["git", "argv", "hardware", "packages", "python"])
            path.write_text(json.dumps({key: noise.choice(WORDS)}))
        else:
            odd_results(noise, path)
    if noise.random() < 0.1:
        (folder / "results.h5.lock").unlink(missing_ok=True)
        os.mkfifo(folder / "results.h5.lock")
    return folder
