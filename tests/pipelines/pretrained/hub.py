"""A local server that answers as a hub of weights does: redirects, lengths, ranges, cut transfers, refusals."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """Files by path, and how the server misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Path -> after how many bytes each of the next transfers breaks off."""
    ranges: bool = True
    etags: dict[str, str] = field(default_factory=dict)
    """Path -> hash that the redirect gives instead of the right one."""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def paths(self) -> list[str]:
        """Return the paths of all requests, in order."""
        return [path for path, _ in self.seen]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.hub, self.path
        hub.seen.append((path, dict(self.headers.items())))
        if "/resolve/" in path and path in hub.files:  # Hugging Face sends large files from another server
            self.send_response(302)
            self.send_header("Location", f"{hub.url.replace('127.0.0.1', 'localhost')}/storage{path}?X-Amz-Signature=1")
            self.send_header("X-Linked-ETag", f'"{hub.etags.get(path) or hashlib.sha256(hub.files[path]).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        name = path.partition("?")[0].removeprefix("/storage")
        if name not in hub.files:
            self.send_error(404)
            return
        self._send(name, hub.files[name])

    def _send(self, name: str, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.hub.ranges else None
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", '"1"')
        self.end_headers()
        cuts = self.hub.cuts.get(name, [])
        end = start + cuts.pop(0) if cuts else len(data)
        self.wfile.write(data[start:end])


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub on loopback; requests fill `seen`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
