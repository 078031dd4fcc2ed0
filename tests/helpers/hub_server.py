"""A Hugging Face hub on loopback that has one data set: a file of parquet."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, COMMIT = "some/body", "c0ffee" + 34 * "0"

FILE = "data/train-00000-of-00001.parquet"


class _Hub(BaseHTTPRequestHandler):
    """Answers what the hub's library asks on its way to the file."""

    protocol_version = "HTTP/1.1"
    content = b""
    asked: list[str] = []  # noqa: RUF012 - a class is made for each hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        entry = {"type": "file", "path": FILE, "size": len(self.content), "oid": "a" * 40}
        folder = {"type": "directory", "path": "data", "size": 0, "oid": "0" * 40}
        about = {"id": NAME, "_id": "0" * 24, "sha": COMMIT, "private": False, "tags": []}
        about |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0}
        tree, files = f"/api/datasets/{NAME}/tree/{COMMIT}", f"/datasets/{NAME}/resolve/{COMMIT}/"
        revisions = ("", "/revision/main", f"/revision/{COMMIT}")
        if path in [f"/api/datasets/{NAME}{revision}" for revision in revisions]:
            self.answer(200, json.dumps({**about, "siblings": [{"rfilename": FILE}]}).encode())
        elif path.startswith(tree):
            found = [entry] if path.endswith("/data") else [folder]
            self.answer(200, json.dumps(found).encode())
        elif path == files + FILE:
            self.answer(200, self.content, {"ETag": f'"{"a" * 40}"'})
        else:
            absent = "EntryNotFound" if path.startswith(files) else "RepoNotFound"
            self.answer(404, b"", {"X-Error-Code": absent})

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "X-Repo-Commit": COMMIT}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def a_hub(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serves the file; yields the hub's address, and what it was asked for."""
    asked = list[str]()
    handler = type("Hub", (_Hub,), {"content": content, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
