"""EC2's spot notice, from a metadata service that asks for IMDSv2's token as the real one does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest

from infra import notice
from infra.cluster import OwnNode
from infra.notice import spot_seconds

TOKEN = "a-token"


class Metadata(BaseHTTPRequestHandler):
    """Answers with the server's `action`, or 404 while there is none; with `fault` where the server has one."""

    def do_PUT(self) -> None:
        if self.server.fault:
            self._answer(self.server.fault, "")
            return
        asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if asked else 400, TOKEN)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.action:
            self._answer(200, self.server.action)
        else:
            self._answer(404, "")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        server.action, server.fault = "", 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/latest"


def test_while_ec2_says_nothing_there_is_no_notice(metadata: ThreadingHTTPServer) -> None:
    assert spot_seconds(address(metadata)) is None


def test_a_notice_tells_the_seconds_that_are_left(metadata: ThreadingHTTPServer) -> None:
    end = datetime.now(UTC) + timedelta(seconds=120)
    metadata.action = json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})
    left = spot_seconds(address(metadata))
    assert left is not None and 100 < left <= 120


@pytest.mark.parametrize("action", ["terminate", "{}", '{"time": "soon"}', '{"time": null}', "[]"])
def test_a_notice_that_cannot_be_read_is_one_all_the_same(metadata: ThreadingHTTPServer, action: str) -> None:
    metadata.action = action
    assert spot_seconds(address(metadata)) == 100


@pytest.mark.parametrize("status", [403, 503])
def test_a_service_that_fails_is_told_once_and_asked_again(
    metadata: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    metadata.fault = status
    assert [spot_seconds(address(metadata)) for _ in range(3)] == [None] * 3
    assert capsys.readouterr().err.count(f"answers {status}") == 1
    metadata.fault, metadata.action = 0, "terminate"
    assert spot_seconds(address(metadata)) == 100


def test_a_machine_without_a_metadata_service_gets_no_notice() -> None:
    assert spot_seconds("http://127.0.0.1:9/latest") is None


class Waits(threading.Event):
    """Keeps how long somebody was ready to wait each time, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout or 0.0)
        return self.is_set()


def test_a_pods_hook_returns_when_the_node_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A raylet that is drained ends with its last work; with Ray itself: tests/cluster/test_new_head.py."""
    raylets, drained, told = iter([7, 7, 7, None]), [], Waits()
    monkeypatch.setattr(notice, "ray_process", lambda name: next(raylets))
    monkeypatch.setattr(notice, "drain", lambda node, seconds: drained.append((node, seconds)))
    notice._drain_now(cast(OwnNode, "node"), 100.0, told)
    assert drained == [("node", 100.0)]
    assert len(told.asked) == 3 and max(told.asked) < 1.0


def test_a_pods_hook_returns_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = iter(range(0, 1000, 10)), Waits()
    monkeypatch.setattr(notice, "ray_process", lambda name: 7)
    monkeypatch.setattr(notice, "drain", lambda node, seconds: None)
    monkeypatch.setattr(notice.time, "monotonic", lambda: float(next(clock)))
    notice._drain_now(cast(OwnNode, "node"), 100.0, told)
    assert len(told.asked) == 9
