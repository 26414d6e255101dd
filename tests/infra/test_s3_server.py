"""The development server: several at once, and objects that outlive it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.s3_server import S3Server, serve_s3
from infra.storage import open_store


def _use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)


def test_two_side_by_side_and_a_restart(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_s3(tmp_path / "second", bucket="other") as second:
        assert second.endpoint != s3_server.endpoint
        _use(second, monkeypatch)
        open_store("s3://other/x").write("kept", b"1" * 100_000)
        pid = second.pid
        assert second.secret_key not in repr(second)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with serve_s3(tmp_path / "second", bucket="other") as again:
        _use(again, monkeypatch)
        assert open_store("s3://other/x").read("kept") == b"1" * 100_000
