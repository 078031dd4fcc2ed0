"""The least of a W&B server: W&B's own client makes runs, sweeps, artifacts, and saves views."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

PERSON = {"id": "v", "entity": "me", "username": "me", "name": "me", "flags": "{}", "admin": False}


class Server:
    """What it holds.

    Attributes:
        address: to be WANDB_BASE_URL.
        begun: the variables of every run that was begun or continued, as W&B's own process sent it.
        ended: exit codes of runs that came to their end, by id.
        views: the variables of every view of a project that was saved.
        sweep: the YAML of the sweep that was made last.
        values: of the runs that a sweep's agents are still to be given.
        versions: numbers of the versions of the one artifact, `me/letters/model`.
        silent: set, it takes what comes, and answers nothing more.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.begun: list[dict[str, Any]] = []
        self.ended: dict[str, int] = {}
        self.silent = threading.Event()
        self.views: list[dict[str, Any]] = []
        self.sweep = ""
        self.values: list[dict[str, Any]] = []
        self.versions: list[int] = []

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """To a GraphQL query."""
        if "mutation UpsertBucket" in query:
            return self._begin(given)
        if "upsertView(" in query:
            self.views.append(given)
            return {"upsertView": {"view": {"id": "1", "name": given["name"]}, "inserted": True}}
        for answer, names in (
            (self._training, ("query RunResumeStatus", "mutation CreateRunFiles")),
            (self._sweeping, ("Sweep", "Agent", "Heartbeat")),
            (self._artifacts, ("query ProjectArtifacts", "mutation DeleteArtifact")),
        ):
            if any(name in query for name in names):
                return answer(query, given)
        return {"viewer": PERSON, "serverInfo": {"features": []}}

    def _begin(self, given: dict[str, Any]) -> dict[str, Any]:
        self.begun.append(given)
        bucket = {"id": given["name"], "name": given["name"], "project": _project(given)}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _training(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """To W&B's own process, which tells of a run while it is trained."""
        if "query RunResumeStatus" in query:
            return {"model": {**_project(given), "bucket": None}}
        address = f"{self.address}/put/"
        places = [{"name": name, "uploadUrl": address + name} for name in given["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": places}}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Takes what a run's process tells of itself."""
        if sent.get("complete"):
            self.ended[run] = sent["exitcode"]

    def _artifacts(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "query ProjectArtifacts" in query:
            edges = [{"version": f"v{n}", "node": self._artifact(n)} for n in self.versions]
            page = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}
            found = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
            sequence = {"__typename": "ArtifactSequence", "artifacts": found}
            return {"project": {"artifactType": {"artifactCollection": sequence}}}
        self.versions.remove(int(given["input"]["artifactID"]))
        return {"deleteArtifact": {"artifact": {"id": given["input"]["artifactID"]}}}

    def _sweeping(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "mutation UpsertSweep" in query:
            self.sweep = given["config"]
            project = {"id": "7", "name": given["projectName"], "entity": {"id": "v", "name": "me"}}
            sweep = {"name": "s7", "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if "mutation CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "a1"}}}
        if "mutation Heartbeat" in query:
            commands: list[dict[str, Any]] = []
            if self.values and not json.loads(given["runState"]):
                args = {name: {"value": value} for name, value in self.values.pop(0).items()}
                about = {"type": "run", "run_id": f"run{len(self.values)}", "program": None}
                commands = [{**about, "args": args}]
            return {"agentHeartbeat": {"agent": {"id": "a1"}, "commands": json.dumps(commands)}}
        return {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}}

    def _artifact(self, number: int) -> dict[str, Any]:
        project = {"id": "7", "internalId": "7", "name": "letters", "entity": {"name": "me"}}
        kind = {"__typename": "ArtifactSequence", "name": "model", "project": project}
        alias = {
            "__typename": "ArtifactAlias", "id": f"a{number}", "alias": f"v{number}",
            "artifactCollection": kind,
        }  # fmt: skip
        nothing = dict.fromkeys(("description", "metadata", "historyStep", "commitHash"))
        about = {
            "__typename": "Artifact", "id": str(number), "artifactSequence": kind,
            "versionIndex": number, "artifactType": {"name": "model"}, "tags": [],
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "state": "COMMITTED", "size": 1,
            "digest": "0", "fileCount": 1, "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None, "aliases": [alias],
        }  # fmt: skip
        return {**nothing, **about}


def _project(given: dict[str, Any]) -> dict[str, Any]:
    return {"id": "7", "name": given["project"], "entity": {"id": "v", "name": "me"}}


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *args: Any) -> None:
        """Clients may go away."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server of this process, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.silent.is_set():
                over.wait()
                return
            asked = json.loads(body) if self.path == "/graphql" else {}
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            found = server.answer(asked.get("query", ""), asked.get("variables") or {})
            content = json.dumps({"data": found}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *args: Any) -> None:
            pass

    over = threading.Event()
    listener = _Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


@contextmanager
def no_answer(silent: bool, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """An address that takes what comes and is silent, or is closed; asking costs `seconds`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        began = time.monotonic()
        yield
    assert time.monotonic() - began < seconds
