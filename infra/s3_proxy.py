"""A proxy in front of an S3 server that simulates faults of object storage; for tests and benchmarks.

    with serve_s3(folder) as server, serve_proxy(server.endpoint, delay_ms=50) as proxy:
        os.environ.update(server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint})

`proxy.delay_ms`, `proxy.faults` and `proxy.target` may change while the proxy serves; `proxy.seen` counts requests and
faults. The command serves in a separate process, which costs a benchmark's process no time, until it is interrupted:

    python -m infra.s3_proxy http://127.0.0.1:8333 --port 8444 --delay-ms 50
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from io import BufferedReader
from urllib.parse import urlsplit

_HOST = "127.0.0.1"
_CHUNK_BYTES = 1 << 18
_SHORT_BY = 7  # bytes
_NO_BODY = (204, 304)
_GOOD_AFTER_FLIP = 8  # answers of the same range
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_ERROR_PAGE = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Share of the requests that get each fault, 0 to 1. All faults but `slow_down` affect bodies of GETs only."""

    slow_down: float = 0.0
    """503 SlowDown."""
    reset: float = 0.0
    """The connection is reset in the middle of the body."""
    short: float = 0.0
    """The body ends 7 bytes early, and the header gives the short length."""
    stall: float = 0.0
    """The body stops in its middle for `stall_s`, then the connection is reset."""
    error_page: float = 0.0
    """200 with an XML error instead of the object."""
    flip: float = 0.0
    """One bit of the body is flipped; then the same range has a few good answers, unlike a damaged object.

    Several tasks may read a range at once, and each that received a flipped bit reads it a second time.
    """
    stall_s: float = 20.0
    """Length of a stall, in seconds."""

    def draw(self, draw: float, method: str) -> str:
        """Return the fault of a request for a number drawn from [0, 1), or ""."""
        for field in fields(self)[:-1]:
            share: float = getattr(self, field.name)
            if draw < share:
                return field.name if method == "GET" or field.name == "slow_down" else ""
            draw -= share
        return ""


class Proxy:
    """A running proxy."""

    def __init__(self, target: str, *, delay_ms: float, faults: Faults, seed: int) -> None:
        self.target = target
        """Endpoint of the S3 server, such as http://127.0.0.1:8333."""
        self.delay_ms = delay_ms
        """Milliseconds that every request waits before it is passed on."""
        self.faults = faults
        self.seen: Counter[str] = Counter()
        """"requests", how many of them met each fault by its name in `Faults`, and how many found the server "away"."""
        self.endpoint = ""
        self._rng = random.Random(seed)
        self._unflipped: Counter[str] = Counter()  # answers of a range that come without a flipped bit from now on
        self._lock = threading.Lock()

    def fault_of(self, method: str, what: str) -> str:
        """Count a request for `what` (a path and a range) and draw its fault."""
        with self._lock:
            fault = self.faults.draw(self._rng.random(), method)
            if fault == "flip" and self._unflipped[what] > 0:
                fault = ""
            self._unflipped[what] = _GOOD_AFTER_FLIP if fault == "flip" else self._unflipped[what] - 1
            self.seen.update(["requests", *filter(None, [fault])])
        return fault

    def count(self, what: str) -> None:
        """Count one more of `what` in `seen`."""
        with self._lock:
            self.seen[what] += 1


@contextmanager
def serve_proxy(
    target: str, *, delay_ms: float = 0.0, faults: Faults | None = None, seed: int = 0, port: int = 0
) -> Iterator[Proxy]:
    """Serve on loopback, in threads of this process, until the block ends; port 0 = a free one."""
    proxy = Proxy(target, delay_ms=delay_ms, faults=faults or Faults(), seed=seed)

    class Handler(_Connection):
        serves = proxy

    with _Server((_HOST, port), Handler) as server:
        proxy.endpoint = f"http://{_HOST}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Head:
    """The first line and the header fields of a request or an answer."""

    def __init__(self, data: bytes) -> None:
        first, *lines = data.decode("latin-1").split("\r\n")
        self.words = first.split(" ", 2)
        self.fields = [tuple(line.split(": ", 1)) if ": " in line else (line.rstrip(":"), "") for line in lines if line]

    @classmethod
    def read(cls, stream: BufferedReader) -> _Head | None:
        """Return the next head of a connection, or None if the connection has ended."""
        lines = bytearray()
        while (line := stream.readline()) not in (b"\r\n", b""):
            lines += line
        return cls(bytes(lines)) if lines and line else None

    def __getitem__(self, name: str) -> str:
        return next((value for key, value in self.fields if key.lower() == name), "")

    def set(self, name: str, value: str | None) -> None:
        """Replace a field, or remove it."""
        self.fields = [field for field in self.fields if field[0].lower() != name]
        if value is not None:
            self.fields.append((name, value))

    def to_bytes(self) -> bytes:
        lines = [" ".join(self.words), *(f"{name}: {value}" for name, value in self.fields)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Connection(socketserver.BaseRequestHandler):
    """One client's connection, with a separate connection to the S3 server."""

    serves: Proxy
    _upstream: socket.socket | None
    _target: str
    _answers: BufferedReader

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream = None
        with suppress(OSError), self.request.makefile("rb") as requests:
            while (head := _Head.read(requests)) is not None and self._serve(head, requests):
                pass
        self._forget()

    def _serve(self, head: _Head, requests: BufferedReader) -> bool:
        """Answer one request; return False if the connection ends with it."""
        if head["expect"]:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head.set("expect", None)
        body = b"".join(_body(head, requests))
        fault = self.serves.fault_of(head.words[0], f"{head.words[1]} {head['range']}")
        if self.serves.delay_ms:
            time.sleep(self.serves.delay_ms / 1000)
        if fault == "slow_down":
            return self._answer_page(b"503 Slow Down", _SLOW_DOWN)
        if fault == "error_page":
            return self._answer_page(b"200 OK", _ERROR_PAGE)
        answer = self._ask(head, body)
        if answer is None:
            self.serves.count("away")
            return self._reset()
        if fault and answer["content-length"] and answer.words[1].startswith("2"):
            return self._answer_badly(answer, fault)
        return self._pass_on(head, answer)

    def _ask(self, head: _Head, body: bytes) -> _Head | None:
        """Return the head of the S3 server's answer, by a new connection if the old one has ended; None without one."""
        for fresh in (self._upstream is None, True):
            with suppress(OSError):
                if self._upstream is not None and self._target != self.serves.target:
                    self._forget()
                if self._upstream is None:
                    self._target = self.serves.target
                    target = urlsplit(self._target)
                    self._upstream = socket.create_connection((target.hostname or _HOST, target.port or 80))
                    self._upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._answers = self._upstream.makefile("rb")
                self._upstream.sendall(head.to_bytes() + body)
                if answer := _Head.read(self._answers):
                    return answer
            self._forget()
            if fresh:
                break
        return None

    def _pass_on(self, head: _Head, answer: _Head) -> bool:
        self.request.sendall(answer.to_bytes())
        if head.words[0] == "HEAD" or int(answer.words[1]) in _NO_BODY:
            return True
        framed = bool(answer["content-length"] or answer["transfer-encoding"])
        for chunk in _body(answer, self._answers) if framed else iter(lambda: self._answers.read1(_CHUNK_BYTES), b""):
            self.request.sendall(chunk)
        return framed

    def _answer_page(self, status: bytes, page: bytes) -> bool:
        head = b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
        self.request.sendall(head % (status, len(page)) + page)
        return True

    def _answer_badly(self, answer: _Head, fault: str) -> bool:
        body = b"".join(_body(answer, self._answers))
        half = len(body) // 2
        if fault == "flip" and body:
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        if fault == "short":
            body = body[:-_SHORT_BY]
            answer.set("content-length", str(len(body)))
        if fault in ("flip", "short"):
            self.request.sendall(answer.to_bytes() + body)
            return True
        self.request.sendall(answer.to_bytes() + body[:half])
        if fault == "stall":
            time.sleep(self.serves.faults.stall_s)
        return self._reset()

    def _reset(self) -> bool:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()
        return False

    def _forget(self) -> None:
        if self._upstream is not None:
            self._answers.close()
            self._upstream.close()
            self._upstream = None


def _body(head: _Head, stream: BufferedReader) -> Iterator[bytes]:
    """Yield the body of a message in pieces; a chunked body keeps its framing."""
    missing = int(head["content-length"] or 0)
    while missing:
        chunk = stream.read1(min(missing, _CHUNK_BYTES))
        if not chunk:
            raise ConnectionError("the message ended early")
        missing -= len(chunk)
        yield chunk
    if head["transfer-encoding"].lower() == "chunked":
        yield from _chunks(stream)


def _chunks(stream: BufferedReader) -> Iterator[bytes]:
    size = -1
    while size:
        line = stream.readline()
        size = int(line.partition(b";")[0], 16)
        yield line + stream.read(size + 2 if size else 0)
    while (line := stream.readline()) not in (b"\r\n", b""):  # trailers
        yield line
    yield b"\r\n"


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m infra.s3_proxy", description="A slow and unreliable S3 server.")
    parser.add_argument("target", help="endpoint of the S3 server, such as http://127.0.0.1:8333")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="milliseconds added to every request")
    for field in fields(Faults):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(
            flag, type=float, default=field.default, help="seconds" if field.name == "stall_s" else "share"
        )
    arguments = vars(parser.parse_args())
    faults = Faults(**{field.name: arguments.pop(field.name) for field in fields(Faults)})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt), serve_proxy(**arguments, faults=faults) as proxy:
        sys.stdout.write(f"export AWS_ENDPOINT_URL={proxy.endpoint}\n")
        sys.stdout.flush()
        signal.pause()


if __name__ == "__main__":
    main()
