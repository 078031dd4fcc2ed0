"""WebDataset's tar files, and a server of them that fails now and then."""

import io
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_files import png
from noise import pixels

Members = Sequence[tuple[str, bytes]]


def odd_images(count: int = 40, seed: int = 0) -> list[bytes]:
    """Images of several sizes, which workers read."""
    return [png(pixels(12 + i % 3, 12, 3, seed=seed + i)) for i in range(count)]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def samples(images: Sequence[bytes], first: int = 0) -> list[tuple[str, bytes]]:
    """An image and a label each."""
    return [
        member
        for i, image in enumerate(images, first)
        for member in ((f"{i:06}.png", image), (f"{i:06}.cls", b"%d" % (i % 4)))
    ]


def write_shards(folder: Path, images: Sequence[bytes], each: int = 16) -> Path:
    for number, first in enumerate(range(0, len(images), each)):
        members = samples(images[first : first + each], first)
        write_tar(folder / f"{number:04}.tar", members)
    return folder


class Server:
    """Serves a folder by ranges.

    Attributes:
        address: of the folder.
        asked: (file, first byte, bytes) of each request for content.
        fail: every n-th request for content fails, in one of three ways; 0: none.
        wanted: the header Authorization that all requests must have; empty: none.
    """

    def __init__(self, folder: Path, fail: int = 0) -> None:
        self.folder, self.fail, self.status = folder, fail, 0
        self.asked: list[tuple[str, int, int]] = []
        self.ranges, self.wanted = True, ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                outer._answer(self, head=True)

            def do_GET(self) -> None:
                outer._answer(self, head=False)

        class Listening(ThreadingHTTPServer):
            request_queue_size = 128  # one that does not fit waits for a second

        self._server = Listening(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._lock = threading.Lock()

    def _answer(self, request: Any, *, head: bool) -> None:
        path = self.folder / request.path.lstrip("/")
        if outer_status := self.status:
            request.send_error(outer_status)
            return
        if self.wanted and request.headers.get("Authorization") != self.wanted:
            request.send_error(401)
            return
        if path.is_dir():
            names = sorted(each.name + "/" * each.is_dir() for each in path.iterdir())
            self._send(request, 200, "".join(f'<a href="{n}">{n}</a>' for n in names).encode())
            return
        if not path.is_file():
            request.send_error(404)
            return
        content = path.read_bytes()
        about = path.stat()
        request.etag = f'"{about.st_mtime_ns}-{about.st_size}"'
        if head:
            self._send(request, 200, content, head=True)
            return
        given = request.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first, _, last = given.partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        with self._lock:
            self.asked.append((path.name, int(first), len(part)))
            number = len(self.asked)
        if self.fail and number % self.fail == 0:
            way = number // self.fail % 3
            if way == 0:
                request.send_error(500)
            elif way == 1:
                request.connection.close()
            else:
                self._send(request, 206, part, short=True)
            return
        self._send(request, 206, part) if self.ranges else self._send(request, 200, content)

    def _send(
        self, request: Any, code: int, body: bytes, *, head: bool = False, short: bool = False
    ) -> None:
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", "text/html")
        request.send_header("Accept-Ranges", "bytes")
        if hasattr(request, "etag"):
            request.send_header("ETag", request.etag)
        request.end_headers()
        if not head:
            request.wfile.write(body[: len(body) // 2] if short else body)

    def __enter__(self) -> "Server":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(folder: Path, fail: int = 0) -> Iterator[Server]:
    """A server of a folder."""
    with Server(folder, fail) as server:
        yield server
