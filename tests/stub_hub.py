"""A stand-in for the ModelScope hub on 127.0.0.1: serves folders as models and data sets to the real client.

It also serves single files of data sets as Hugging Face does: ``/datasets/{id}/resolve/main/{path}``.

``GET /api/v1/models/{id}/repo/files`` and ``/api/v1/datasets/{id}/repo/tree`` list the files;
``…/repo?FilePath=`` returns the bytes of one.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HUGGING_FACE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/main/(.+)")
REPOSITORY = re.compile(r"/api/v1/(models|datasets)/([^/]+/[^/]+)(/repo/files|/repo/tree|/repo|/revisions)?")


class StubHub:
    """The files that the hub serves, and the requests it has received.

    Attributes:
        repositories: ``("models", "Owner/Name")`` or ``("datasets", …)`` → the folder with its files; ``("hf", …)``
            is a data set of Hugging Face.
        wrong_bytes: paths of files to serve with a wrong first byte.
        faults: paths of files that are answered with this status instead; 0 breaks off in the middle.
        requests: the requested paths, oldest first.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Path] = {}
        self.wrong_bytes: set[str] = set()
        self.faults: dict[str, int] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables that send the client to this hub and keep its settings and cache in ``home``."""
        return {
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_DOMAIN": self.endpoint.removeprefix("http://"),
            "MODELSCOPE_URL_SCHEME": "http://",
            "MODELSCOPE_HOME": str(home / "modelscope"),
            "MODELSCOPE_CACHE": str(home / "cache"),
            "NO_PROXY": "127.0.0.1",
        }

    def respond(self, path: str) -> tuple[int, bytes, str]:
        """Status, body and content type for one GET."""
        address = urlsplit(path)
        if one := HUGGING_FACE.fullmatch(address.path):
            folder = self.repositories.get(("hf", one[1]))
            return self._file(folder, one[2]) if folder else _json(404, {})
        match = REPOSITORY.fullmatch(address.path)
        folder = self.repositories.get((match[1], match[2])) if match else None
        if folder is None:
            return _json(404, {"Code": 404, "Success": False, "Message": "not found"})
        if match[3] in ("/repo/files", "/repo/tree"):
            return _json(200, {"Code": 200, "Success": True, "Data": {"Files": list_files(folder)}})
        if match[3] == "/repo":
            return self._file(folder, parse_qs(address.query)["FilePath"][0])
        if match[3] == "/revisions":
            revisions = {"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": []}}
            return _json(200, {"Code": 200, "Success": True, "Data": revisions})
        return _json(200, {"Code": 200, "Success": True, "Data": {"Name": match[2].split("/")[1]}})

    def _file(self, folder: Path, name: str) -> tuple[int, bytes, str]:
        if not (folder / name).is_file():
            return _json(404, {"Code": 404, "Success": False, "Message": "no such file"})
        if self.faults.get(name):
            return _json(self.faults[name], {"Code": self.faults[name], "Success": False, "Message": "fault"})
        content = (folder / name).read_bytes()
        if name in self.wrong_bytes:
            content = bytes([content[0] ^ 1]) + content[1:]
        return 200, content, "application/octet-stream"


def list_files(folder: Path) -> list[dict]:
    """A repository's file list in the hub's format."""
    return [
        {
            "Path": path.relative_to(folder).as_posix(),
            "Name": path.name,
            "Type": "blob",
            "Size": path.stat().st_size,
            "Sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "Revision": "0" * 40,
            "CommittedDate": 1700000000,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """Serve until the ``with`` block ends."""
    hub = StubHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(self.path)
            status, body, content_type = hub.respond(self.path)
            start, end = _asked_range(self.headers.get("Range"), len(body))
            if status == 200 and (start, end) != (0, len(body)):
                status = 206
                self.send_response(status)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
            else:
                self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(end - start))
            if HUGGING_FACE.match(self.path):  # what its client wants to know of a file
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            breaks_off = any(status == 0 and name in self.path for name, status in hub.faults.items())
            if self.command != "HEAD":
                self.wfile.write(body[start : (start + end) // 2 if breaks_off else end])
            self.close_connection |= breaks_off

        do_HEAD = do_GET

        def log_message(self, *arguments) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _asked_range(header: str | None, size: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if match is None:
        return 0, size
    return int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)


def _json(status: int, value: object) -> tuple[int, bytes, str]:
    return status, json.dumps(value).encode(), "application/json"
