from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from captioning.data.corpus import read_corpus
from captioning.data.download import FLICKR8K, Archive, download_flickr8k
from captioning.support.errors import CaptioningError

TOKENS = b"a.jpg#0\tA dog .\nb.jpg#0\tA cat .\nc.jpg#0\tA hen .\n"
TEXT = {
    "Flickr8k.token.txt": TOKENS,
    "Flickr_8k.trainImages.txt": b"a.jpg\n",
    "Flickr_8k.devImages.txt": b"b.jpg\n",
    "Flickr_8k.testImages.txt": b"c.jpg\n",
    "__MACOSX/._Flickr8k.token.txt": b"\x00",
}
IMAGES = {
    "Flicker8k_Dataset/a.jpg": bytes(range(256)) * 400,
    "Flicker8k_Dataset/b.jpg": b"b" * 100,
    "Flicker8k_Dataset/c.jpg": b"c" * 100,
    "__MACOSX/Flicker8k_Dataset/._a.jpg": b"\x00",
}


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archives(files: dict[str, bytes]) -> tuple[Archive, Archive]:
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    tokens = {"Flickr8k.token.txt": hashlib.sha256(TOKENS).hexdigest()}
    return (
        Archive("text.zip", md5["text.zip"], "Flickr8k_text", ".txt", sha256=tokens),
        Archive("images.zip", md5["images.zip"], "Flicker8k_Dataset", ".jpg", count=3),
    )


class Server(ThreadingHTTPServer):
    """A mirror that understands ranges and can be told to misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None  # bytes of a body, then the connection ends
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mirror"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.removeprefix("/mirror/"), self.headers["Range"]
        self.server.asked.append((name, wanted))
        content = self.server.files.get(name)
        if content is None:
            return self.send_error(404)
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])
        return None

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def start_server() -> Iterator[Callable[[], Server]]:
    servers = []

    def start() -> Server:
        server = Server()
        server.files = {"text.zip": zipped(TEXT), "images.zip": zipped(IMAGES)}
        # A short poll, or each shutdown takes half a second.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(start_server: Callable[[], Server]) -> Server:
    return start_server()


def assert_complete(root: Path) -> None:
    assert [len(read_corpus(root).split(split)) for split in ("train", "dev", "test")] == [1, 1, 1]
    folders = {path.name for path in root.iterdir()}
    assert folders == {"Flickr8k_text", "Flicker8k_Dataset", ".download.lock"}
    first = (root / "Flicker8k_Dataset" / "a.jpg").read_bytes()
    assert first == IMAGES["Flicker8k_Dataset/a.jpg"]
    assert len(list((root / "Flicker8k_Dataset").iterdir())) == 3


def test_a_fresh_download_gives_a_readable_corpus_and_the_next_call_nothing_to_do(
    server: Server, tmp_path: Path
) -> None:
    root = tmp_path / "new" / "flickr8k"
    assert download_flickr8k(root, [server.url], archives(server.files)) == root
    assert_complete(root)
    server.asked.clear()
    download_flickr8k(root, [server.url], archives(server.files))
    assert server.asked == []


def test_a_cut_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = 40_000
    download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert_complete(tmp_path)
    ranges = [wanted for name, wanted in server.asked if name == "images.zip"]
    assert ranges == [None, "bytes=40000-", "bytes=80000-"]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(server.files["images.zip"][:70_000])
    download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert_complete(tmp_path)
    assert ("images.zip", "bytes=70000-") in server.asked


def test_a_complete_piece_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(server.files["images.zip"])
    download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert_complete(tmp_path)
    assert "images.zip" not in [name for name, _ in server.asked]


@pytest.mark.parametrize("extra", [-5000, 0, 5000])
def test_a_piece_of_another_file_is_thrown_away(server: Server, tmp_path: Path, extra: int) -> None:
    stale = b"x" * (len(server.files["images.zip"]) + extra)
    (tmp_path / "images.zip.part").write_bytes(stale)
    download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert_complete(tmp_path)


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "images.zip.part").write_bytes(server.files["images.zip"][:70_000])
    download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert_complete(tmp_path)


def test_a_server_that_never_gets_further_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, 50
    with pytest.raises(CaptioningError, match="the connection ended at byte 50 of"):
        download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert len(server.asked) == 2


def test_the_next_mirror_takes_over(
    start_server: Callable[[], Server], server: Server, tmp_path: Path
) -> None:
    expected = archives(server.files)
    damaged = start_server()
    content = bytearray(damaged.files["images.zip"])
    content[1000] ^= 1
    damaged.files = {"images.zip": bytes(content)}
    download_flickr8k(tmp_path, [damaged.url, server.url], expected)
    assert_complete(tmp_path)
    assert [name for name, _ in damaged.asked] == ["text.zip", "images.zip"]


def test_a_damaged_archive_is_refused_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    expected = archives(server.files)
    server.files["text.zip"] = server.files["text.zip"].replace(b"A dog", b"A fog")
    with pytest.raises(CaptioningError, match="not the original archive"):
        download_flickr8k(tmp_path, [server.url], expected)
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zipped(TEXT).replace(b"A dog", b"A fog"), "CRC"),
        (b"<html>please log in</html>", "damaged"),
        (zipped({**TEXT, "Flickr8k.token.txt": b"other"}), "token.txt is not the original"),
        (zipped({"readme.txt": b""}), "has no Flickr8k.token.txt"),
        (zipped({**TEXT, "old/Flickr8k.token.txt": TOKENS}), "two files of one name"),
    ],
)
def test_contents_are_checked_even_where_the_checksum_is_right(
    server: Server, tmp_path: Path, content: bytes, says: str
) -> None:
    server.files["text.zip"] = content
    with pytest.raises(CaptioningError, match=says):
        download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]


def test_missing_images_are_counted(server: Server, tmp_path: Path) -> None:
    server.files["images.zip"] = zipped(dict(list(IMAGES.items())[1:]))
    with pytest.raises(CaptioningError, match="2 images, not 3"):
        download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert not (tmp_path / "Flicker8k_Dataset").exists()


def symlink_entry() -> bytes:
    buffer = io.BytesIO(zipped(TEXT))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped({**TEXT, "../evil.txt": b""}),
        zipped({**TEXT, "a/../../evil.txt": b""}),
        zipped({**TEXT, "/tmp/evil.txt": b""}),
        zipped({**TEXT, "..\\evil.txt": b""}),
        symlink_entry(),
    ],
)
def test_an_entry_that_leaves_the_folder_is_refused(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    server.files["text.zip"] = content
    root = tmp_path / "a" / "b"
    with pytest.raises(CaptioningError, match="leads outside its folder"):
        download_flickr8k(root, [server.url], archives(server.files))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [root / ".download.lock"]


def test_without_any_mirror_one_message_says_what_to_do(server: Server, tmp_path: Path) -> None:
    expected = archives(server.files)
    server.files = {}
    closed = "http://127.0.0.1:9/closed"
    with pytest.raises(CaptioningError) as error:
        download_flickr8k(tmp_path, [server.url, closed], expected)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "HTTP 404",
        "refused",
        *(archive.name for archive in FLICKR8K),
        str(tmp_path),
        "data.root",
    ):
        assert part in message


def test_archives_put_there_by_hand_are_used_and_kept(server: Server, tmp_path: Path) -> None:
    for name, content in server.files.items():
        (tmp_path / name).write_bytes(content)
    download_flickr8k(tmp_path, [], archives(server.files))
    assert len(read_corpus(tmp_path).images) == 3
    assert (tmp_path / "images.zip").is_file()


def test_a_wrong_archive_put_there_by_hand_is_named_and_kept(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "text.zip"
    path.write_bytes(b"not it")
    with pytest.raises(CaptioningError, match=r"text\.zip: not the original archive"):
        download_flickr8k(tmp_path, [server.url], archives(server.files))
    assert path.read_bytes() == b"not it"


def test_two_downloads_at_once_fetch_everything_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(download_flickr8k, tmp_path, [server.url], archives(server.files))
            for _ in range(4)
        ]
        for job in jobs:
            job.result()
    assert_complete(tmp_path)
    assert sorted(name for name, _ in server.asked) == ["images.zip", "text.zip"]


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CaptioningError, match="cannot be written"):
        download_flickr8k(tmp_path / "file" / "flickr8k", [server.url], archives(server.files))
