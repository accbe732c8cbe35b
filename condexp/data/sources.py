"""The published files of a data set: their addresses, their places on disk, their checksums.

Addresses and MD5 sums are torchvision's own, read from its classes. An MD5 sum tells the published
file from any other that is known; it does not guard against an author of both.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from condexp.errors import InputError, choose

DEFAULT_ROOT = Path("data")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_MD5 = partial(hashlib.md5, usedforsecurity=False)
# Of the content: the files are passed on unpacked, and packed in more than one way.
IDX_FILES = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
THROTTLED = (
    "the server of CIFAR, www.cs.toronto.edu, has been slow since June 2026: about an hour for an "
    "archive (pytorch/vision#9536). --mirror URL takes the same file from elsewhere, --archive "
    "FILE one that you have; the checksums are the same"
)


@dataclass(frozen=True)
class Source:
    """The published files of a data set.

    Attributes:
        name: The data set's name.
        places: Folders below the root where the files are looked for; fetched to the first.
        files: MD5 of the content of each file that is read, by name; stored as is or as ``.gz``.
        downloads: MD5 of each file that is fetched: those files, or a ``.tar.gz`` of them.
        mirrors: Addresses of folders that have the downloads.
        elsewhere: Folders outside the root, looked in where no root is given.
        note: What to know before fetching.
        own: The data set that reads other content in the same format, where there is one.
    """

    name: str
    places: tuple[str, ...]
    files: Mapping[str, str]
    downloads: Mapping[str, str]
    mirrors: tuple[str, ...]
    elsewhere: tuple[Path, ...] = ()
    note: str = ""
    own: str | None = None

    def folders(self, root: Path | str | None) -> list[Path]:
        """List where the files may be.

        Args:
            root: ``dataset.root``; None is ``data``.

        Returns:
            The folders in the order in which they are tried.
        """
        home = Path(DEFAULT_ROOT if root is None else root).expanduser()
        return [home / place for place in self.places] + list(
            self.elsewhere if root is None else ()
        )

    def locate(self, root: Path | str | None) -> Path:
        """Find the folder that has all the files.

        Args:
            root: ``dataset.root``; None is ``data``.

        Returns:
            The folder.

        Raises:
            InputError: If none has: what was looked for, where, and the command that fetches it.
        """
        folders = self.folders(root)
        for folder in folders:
            if all(stored(folder, name) for name in self.files):
                return folder
        where = "" if root is None else f" --root {root}"
        raise InputError(
            f"dataset {self.name}: the files {', '.join(self.files)} are not in "
            f"{', '.join(map(self._describe, folders))}. A job never downloads: run "
            f"`condexp data fetch {self.name}{where}`, or set dataset.root."
        )

    def _describe(self, folder: Path) -> str:
        found = sum(stored(folder, name) is not None for name in self.files)
        state = f"{found} of {len(self.files)} there" if folder.is_dir() else "no such folder"
        return f"{folder} ({state})"

    def problem(self, folder: Path, name: str) -> str | None:
        """Compare a file with its checksum; its content is not interpreted.

        Args:
            folder: Where it is.
            name: Its name in ``files``.

        Returns:
            What is wrong with it; None if it is the published file.
        """
        path = stored(folder, name)
        if path is None:
            return "is missing"
        try:
            digest = md5_of(path, packed=path.name != name)
        except (OSError, EOFError, zlib.error) as error:
            return f"can't be read: {error}"
        if digest != self.files[name]:
            return f"is not the published file: MD5 {digest}, not {self.files[name]}"
        return None

    def check(self, folder: Path) -> None:
        """Compare all files with their checksums, before any is opened for good.

        Args:
            folder: Where they are.

        Raises:
            InputError: At the first that is not the published file.
        """
        for name in self.files:
            if problem := self.problem(folder, name):
                raise InputError(
                    f"dataset {self.name}: {folder / name} {problem}. It was not opened; "
                    f"`condexp data fetch {self.name} --root DIR` replaces it.{self._own(folder)}"
                )

    def _own(self, folder: Path) -> str:
        """Return how data of one's own in this format are read, where they are."""
        if self.own is None:
            return ""
        return f" dataset={self.own} dataset.root={folder.parent} takes data of your own."


def stored(folder: Path, name: str) -> Path | None:
    """Find a file under its name, or packed.

    Args:
        folder: Where to look.
        name: The name without ``.gz``.

    Returns:
        The path, packed if both are there, for that is what is fetched; None if neither is.
    """
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def md5_of(path: Path, *, packed: bool = False) -> str:
    """Compute the MD5 of a file.

    Args:
        path: The file.
        packed: Take the MD5 of what was gzipped instead.

    Returns:
        32 hexadecimal digits.
    """
    with gzip.open(path) if packed else path.open("rb") as file:
        return hashlib.file_digest(file, _MD5).hexdigest()


def _idx(name: str, kind: Any) -> Source:
    return Source(
        name,
        places=(f"{kind.__name__}/raw", "."),
        files=IDX_FILES[name],
        downloads=dict(kind.resources),
        mirrors=tuple(kind.mirrors),
        elsewhere=(DEBIAN_FASHION_MNIST,) if name == "fashion_mnist" else (),
    )


def _cifar(name: str, kind: Any) -> Source:
    return Source(
        name,
        places=(kind.base_folder,),
        files=dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]),
        downloads={kind.filename: kind.tgz_md5},
        mirrors=(kind.url.removesuffix(kind.filename),),
        note=THROTTLED,
        own="cifar_batches",
    )


def _svhn(name: str, kind: Any) -> Source:
    published = [kind.split_list[split] for split in ("train", "test")]
    table = {file: md5 for _, file, md5 in published}
    mirrors = {address.removesuffix(file) for address, file, _ in published}
    return Source(name, (".",), table, table, tuple(mirrors))


SOURCES: dict[str, tuple[str, Callable[[str, Any], Source]]] = {
    "mnist": ("MNIST", _idx),
    "fashion_mnist": ("FashionMNIST", _idx),
    "cifar10": ("CIFAR10", _cifar),
    "cifar100": ("CIFAR100", _cifar),
    "svhn": ("SVHN", _svhn),
}


def source_of(name: str) -> Source:
    """Look up where a data set comes from.

    Args:
        name: The data set.

    Returns:
        Its files, addresses and checksums.
    """
    from torchvision import datasets  # takes a second or two

    kind, describe = SOURCES[choose("dataset", name, SOURCES)]
    return describe(name, getattr(datasets, kind))
