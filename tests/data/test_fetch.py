"""Fetching, from a server on this machine that can break off, and from local copies."""

import shutil
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from torchvision import datasets

from condexp.data.fetch import fetch
from condexp.data.sources import IDX_FILES, SOURCES, source_of
from condexp.errors import InputError
from tests.data.archives import publish_idx, write_cifar, write_mnist_like, write_svhn
from tests.from_conf import load


class Server(ThreadingHTTPServer):
    """Serves a folder; sends no more than ``limit`` bytes of a file, whatever it promised."""

    folder: Path
    limit: int | None = None
    ranges = True
    asked: list[str | None]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.limit])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.folder, server.asked = tmp_path / "web", []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a server has: the archive alone."""
    folder = write_cifar(tmp_path / "web", monkeypatch, datasets.CIFAR10)
    shutil.move(folder, tmp_path / "unpacked")
    return tmp_path / "web"


def leftovers(root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if path.suffix in {".part", ".gz"}]


def test_an_archive_is_fetched_unpacked_and_removed(
    tmp_path: Path, cifar: Path, server: Server
) -> None:
    told: list[tuple[str, int, int | None]] = []
    root = tmp_path / "root"
    folder = fetch(
        source_of("cifar10"), root, mirror=server.address, progress=lambda *now: told.append(now)
    )
    assert folder == root / "cifar-10-batches-py"
    assert len(load("cifar10", root=root).train) == 20
    assert not leftovers(root)
    size = (cifar / "cifar-10-python.tar.gz").stat().st_size
    assert told[-1] == ("cifar-10-python.tar.gz", size, size)
    # What is there is not fetched again.
    fetch(source_of("cifar10"), root, mirror="http://127.0.0.1:1/nowhere")
    assert server.asked == [None]


def test_the_mirror_may_be_the_file_itself(tmp_path: Path, cifar: Path) -> None:
    mirror = (cifar / "cifar-10-python.tar.gz").as_uri()
    fetch(source_of("cifar10"), tmp_path / "root", mirror=mirror)
    assert len(load("cifar10", root=tmp_path / "root").test) == 4


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(
    tmp_path: Path, cifar: Path, server: Server, ranges: bool
) -> None:
    root = tmp_path / "root"
    server.limit, server.ranges = 1000, ranges
    with pytest.raises(InputError, match=r"ended after 1000 of \d+ bytes.*resumes from what is"):
        fetch(source_of("cifar10"), root, mirror=server.address)
    assert leftovers(root) == [str(root / "cifar-10-python.tar.gz.part")]
    assert not (root / "cifar-10-batches-py").exists()
    server.limit = None
    fetch(source_of("cifar10"), root, mirror=server.address)
    assert server.asked == [None, "bytes=1000-"]
    assert len(load("cifar10", root=root).train) == 20
    assert not leftovers(root)


def test_a_broken_beginning_is_thrown_away(tmp_path: Path, cifar: Path, server: Server) -> None:
    root, source = tmp_path / "root", source_of("cifar10")
    part = root / "cifar-10-python.tar.gz.part"
    size = (cifar / "cifar-10-python.tar.gz").stat().st_size
    root.mkdir()
    for content, message in ((b"x" * 10, "is not the published file"), (b"x" * size, "416")):
        part.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            fetch(source, root, mirror=server.address)
        assert "resumes" not in str(caught.value)
        assert not leftovers(root)
    # A complete one needs no server.
    shutil.copy(cifar / "cifar-10-python.tar.gz", part)
    fetch(source, root, mirror="http://127.0.0.1:1")
    assert not leftovers(root)


def test_another_file_is_not_kept(tmp_path: Path, cifar: Path, server: Server) -> None:
    (cifar / "cifar-10-python.tar.gz").write_bytes(b"<html>Please log in</html>")
    with pytest.raises(InputError) as caught:
        fetch(source_of("cifar10"), tmp_path / "root", mirror=server.address)
    for words in ("is not the published file", "--mirror", "--archive", datasets.CIFAR10.tgz_md5):
        assert words in str(caught.value)
    assert not list((tmp_path / "root").rglob("*"))


@pytest.mark.parametrize(
    ("mirror", "message"),
    [("{}/nowhere", "404"), ("http://127.0.0.1:1", "refused"), ("example", "unknown url type")],
)
def test_a_mirror_that_has_it_not(
    tmp_path: Path, cifar: Path, server: Server, mirror: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"cifar-10-python.tar.gz could not be.*{message}"):
        fetch(source_of("cifar10"), tmp_path / "root", mirror=mirror.format(server.address))
    assert not (tmp_path / "root").exists()


def test_mirrors_are_tried_in_turn_and_good_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    write_mnist_like(server.folder)
    publish_idx(monkeypatch, "mnist", server.folder)
    mirrors = [f"{server.address}/closed/", f"{server.address}/"]
    monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
    root, stem = tmp_path / "root", next(iter(IDX_FILES["mnist"]))
    folder = fetch(source_of("mnist"), root)
    assert folder == root / "MNIST" / "raw"
    assert len(server.asked) == 8
    assert len(load("mnist", root=root).train) == 40
    # One broken file: it alone is fetched again, and it is what is read, unpacked copy or not.
    (folder / stem).write_bytes(b"broken")
    (folder / f"{stem}.gz").write_bytes(b"broken")
    fetch(source_of("mnist"), root)
    assert len(server.asked) == 10
    assert len(load("mnist", root=root).train) == 40


def archive_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(folder, "../../evil")  # its names decide nothing
    return path


@pytest.mark.parametrize("kind", ["file", "folder with archive", "folder", "parent", "other tar"])
def test_a_local_copy_in_each_form(tmp_path: Path, cifar: Path, kind: str) -> None:
    root, unpacked = tmp_path / "root", tmp_path / "unpacked"
    parent = tmp_path / "copy"
    shutil.copytree(unpacked, parent / "cifar-10-batches-py")
    copies = {
        "file": cifar / "cifar-10-python.tar.gz",
        "folder with archive": cifar,
        "folder": unpacked,
        "parent": parent,
        "other tar": archive_of(unpacked, tmp_path / "mine.tar"),
    }
    fetch(source_of("cifar10"), root, archive=copies[kind])
    assert len(load("cifar10", root=root).train) == 20
    assert {path.name for path in root.iterdir()} == {"cifar-10-batches-py"}
    assert copies[kind].exists()


def test_local_copies_of_single_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path / "svhn", monkeypatch)
    fetch(source_of("svhn"), tmp_path / "root", archive=tmp_path / "svhn")
    assert len(load("svhn", root=tmp_path / "root").train) == 12
    write_mnist_like(tmp_path / "mnist", compressed=True)
    publish_idx(monkeypatch, "mnist", tmp_path / "mnist")
    write_mnist_like(tmp_path / "plain", compressed=False)  # the same content
    for copy in ("mnist", "plain"):
        root = tmp_path / f"root of {copy}"
        fetch(source_of("mnist"), root, archive=tmp_path / copy)
        assert len(load("mnist", root=root).train) == 40


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda copy: copy.unlink(), "No such file"),
        (lambda copy: copy.write_bytes(b"no tar"), "is no tar archive, or a broken one"),
        (lambda copy: copy.write_bytes(copy.read_bytes()[:9000]), "is no tar archive|end"),
        (lambda copy: (copy.unlink(), copy.mkdir()), "has not all of data_batch_1, .*tar.gz"),
    ],
)
def test_copies_that_cannot_be_used(tmp_path: Path, cifar: Path, spoil: Any, message: str) -> None:
    copy = cifar / "cifar-10-python.tar.gz"
    spoil(copy)
    with pytest.raises(InputError, match=message):
        fetch(source_of("cifar10"), tmp_path / "root", archive=copy)
    assert not leftovers(tmp_path / "root")


def test_a_tampered_copy_is_refused(tmp_path: Path, cifar: Path) -> None:
    unpacked = tmp_path / "unpacked"
    (unpacked / "data_batch_3").write_bytes(b"tampered")
    archive = archive_of(unpacked, tmp_path / "mine.tar")
    for copy in (unpacked, archive):
        with pytest.raises(InputError, match="data_batch_3 of the archive is not the published"):
            fetch(source_of("cifar10"), tmp_path / "root", archive=copy)
        assert not (tmp_path / "root" / "cifar-10-batches-py" / "data_batch_3").exists()
        assert not leftovers(tmp_path / "root")
    (unpacked / "data_batch_3").unlink()
    with pytest.raises(InputError, match="lacks data_batch_3"):
        fetch(source_of("cifar10"), tmp_path / "root", archive=archive_of(unpacked, archive))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_complete(name: str) -> None:
    source = source_of(name)
    for table in (source.files, source.downloads):
        assert table
        assert all(len(md5) == 32 and int(md5, 16) for md5 in table.values())
    assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in source.mirrors)
    assert ("9536" in source.note) == name.startswith("cifar")
    if name in IDX_FILES:
        assert set(source.downloads) == {f"{stem}.gz" for stem in source.files}
