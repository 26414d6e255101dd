"""S3 below a path of its server (`AWS_ENDPOINT_URL=https://HOST/storage/v1/s3`), by boto3 and by pyarrow alike."""

from __future__ import annotations

import http.client
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from infra.storage import environment_of_s3, open_store, pyarrow_filesystem

PATH = "/storage/v1/s3"


class _Gateway(BaseHTTPRequestHandler):
    """Serves what is below PATH from another server; it understands bodies of a stated length only."""

    protocol_version = "HTTP/1.1"
    behind = 0

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.startswith(f"{PATH}/") or "Transfer-Encoding" in self.headers:
            self.send_response(400)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        server = http.client.HTTPConnection("127.0.0.1", self.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        server.request(self.command, self.path.removeprefix(PATH), body, headers)
        answer = server.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    handler = type("Gateway", (_Gateway,), {"behind": moto.get_host_and_port()[1]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}{PATH}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="photos")
    yield url
    server.shutdown()
    server.server_close()
    moto.stop()


@pytest.mark.parametrize("slash", ["", "/"])
def test_both_clients_reach_the_same_objects(gateway: str, slash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{gateway}{slash}")
    for name, value in environment_of_s3().items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://photos/{uuid.uuid4().hex}")
    store.check_access(write=True)
    store.write("a", b"1", if_absent=True)
    filesystem, path = pyarrow_filesystem(store.uri)
    with filesystem.open_input_file(f"{path}/a") as file:
        assert file.read() == b"1"
    with filesystem.open_output_stream(f"{path}/b") as file:
        file.write(b"2")
    assert store.read("b") == b"2"


def test_a_large_file_through_a_gateway(gateway: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(17 << 20))
    store = open_store(f"s3://photos/{uuid.uuid4().hex}")
    store.put_file("weights", tmp_path / "weights")
    assert store.size("weights") == 17 << 20


def test_other_endpoints_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333/")
    assert environment_of_s3() == {}
