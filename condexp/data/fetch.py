"""Fetch the published files of a data set: from the web or from a local copy, always checked.

Addresses and checksums are torchvision's, its ``download_url`` is not used: after a break it begins
again (of CIFAR's archive that may be an hour), it writes to the file's final name, has no mirrors
of CIFAR, takes http where https fails, and unpacks whatever an archive names.
"""

import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from condexp.data.sources import Source, md5_of, stored
from condexp.errors import InputError

TIMEOUT = 30.0  # seconds without a byte
DOWNLOAD_CHUNK = 1 << 16  # a slow server's few seconds: what is lost when it breaks off
Progress = Callable[[str, int, int | None], None]
"""Told the file's name, its bytes so far and, where the server says so, in all."""


def fetch(
    source: Source,
    root: Path | str | None = None,
    *,
    mirror: str | None = None,
    archive: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Path:
    """Put the published files where they are looked for.

    Every file is written beside its place, compared with its checksum, and only then renamed. A
    download that broke off is resumed when it is asked for again.

    Args:
        source: What to fetch.
        root: Folder of the data sets; None is ``data``.
        mirror: Address of another folder that has the downloads, or of the one file itself.
        archive: A local copy instead: the archive, or a folder with it or with the files.
        progress: Told how far a download is.

    Returns:
        The folder where the files are.

    Raises:
        InputError: If they cannot be had, or are not the published ones; nothing wrong is left.
    """
    folder = source.folders(root)[0]
    if not any(source.problem(folder, name) for name in source.files):
        return folder
    try:
        if archive is not None:
            _copy(source, archive.expanduser(), folder)
        else:
            _download_all(source, mirror, folder, progress)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"dataset {source.name}, {archive or folder}: {error}.") from error
    source.check(folder)
    return folder


def _download_all(source: Source, mirror: str | None, folder: Path, progress: Progress) -> None:
    for name, md5 in source.downloads.items():
        packed = name.endswith(".tar.gz")
        target = (folder.parent if packed else folder) / name
        if not (target.is_file() and md5_of(target) == md5):
            _download(source, _addresses(source, mirror, name), target, md5, progress)
        if packed:
            _unpack(source, target, folder)
            target.unlink()


def _addresses(source: Source, mirror: str | None, name: str) -> list[str]:
    if mirror is not None and mirror.endswith(f"/{name}"):
        return [mirror]
    folders = source.mirrors if mirror is None else (mirror,)
    return [f"{folder.rstrip('/')}/{name}" for folder in folders]


def _download(
    source: Source, addresses: list[str], target: Path, md5: str, progress: Progress
) -> None:
    part = target.with_name(f"{target.name}.part")
    failures = []
    for address in addresses:
        try:
            if not (part.exists() and md5_of(part) == md5):
                _receive(address, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()  # longer than the file: no beginning of it
            failures.append(f"{address}: {error}")
            continue
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{address}: {error}")
            continue
        digest = md5_of(part)
        if digest == md5:
            part.replace(target)
            return
        part.unlink()
        failures.append(f"{address}: is not the published file: MD5 {digest}, not {md5}")
    kept = f" The same command resumes from what is kept in {part}." if part.exists() else ""
    raise InputError(
        f"dataset {source.name}: {target.name} could not be fetched ({'; '.join(failures)}). Give "
        f"--mirror URL to take it from elsewhere, or --archive FILE for a copy that you have.{kept}"
    )


def _receive(address: str, part: Path, progress: Progress) -> None:
    # Goes on with what is there, where the server can.
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "condexp", **({"Range": f"bytes={done}-"} if done else {})}
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        done = done if response.status == http.client.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if done else "wb") as file:
            while chunk := response.read(DOWNLOAD_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(part.stem, done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _copy(source: Source, archive: Path, folder: Path) -> None:
    if archive.is_dir():
        for place in (archive, *(archive / place for place in source.places)):
            found = [path for name in source.files if (path := stored(place, name))]
            if len(found) == len(source.files):
                for path in found:
                    with path.open("rb") as content:
                        _install(source, content, folder, path.name)
                return
        archives = [archive / name for name in source.downloads if name.endswith(".tar.gz")]
        packed = next((path for path in archives if path.is_file()), None)
        if packed is None:
            names = dict.fromkeys([*source.files, *source.downloads])
            raise InputError(f"--archive {archive}: the folder has not all of {', '.join(names)}.")
        archive = packed
    _unpack(source, archive, folder)


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    missing = set(source.files)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                # Where a member wants to go is no matter: known names alone go to our folder.
                filename = PurePosixPath(member.name).name
                name = filename.removesuffix(".gz")
                content = tar.extractfile(member) if name in missing and member.isfile() else None
                if content is not None:
                    _install(source, content, folder, filename)
                    missing.discard(name)
    except tarfile.TarError as error:
        raise InputError(
            f"dataset {source.name}: {archive} is no tar archive, or a broken one; give the "
            f"archive or a folder that has {', '.join(source.downloads)}."
        ) from error
    if missing:
        raise InputError(f"dataset {source.name}: {archive} lacks {', '.join(sorted(missing))}.")


def _install(source: Source, content: IO[bytes], folder: Path, filename: str) -> None:
    # Beside its place first, and there only if it is the published file.
    part, name = folder / f"{filename}.part", filename.removesuffix(".gz")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(content, file)
        digest = md5_of(part, packed=filename != name)
        if digest != source.files[name]:
            raise InputError(
                f"dataset {source.name}: {filename} of the archive is not the published file: MD5 "
                f"{digest}, not {source.files[name]}. It was not kept."
            )
        part.replace(folder / filename)
    finally:
        part.unlink(missing_ok=True)
