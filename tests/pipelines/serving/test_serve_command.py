"""serve.py tells what is wrong with it in one line, before Ray starts."""

from __future__ import annotations

import socket
import sys

import pytest

from infra.errors import UserError
from pipelines import serve
from tests.pipelines.registered import Registry


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--replicas", "0"], "--replicas must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--batch-wait-ms", "-1"], "--batch-wait-ms must not be negative, --poll-s must be above 0"),
        (["--port", "80000"], "cannot listen at 127.0.0.1:80000: .*; give another --port"),
        (["--model", "models:/served@staging"], "the model 'served' at .* has no alias 'staging'"),
        (["--model", "served"], "'served' is not a registered model: give models:/NAME@champion"),
    ],
)
def test_what_is_wrong_is_told_before_ray_starts(
    arguments: list[str], line: str, registry: Registry, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=line):
        served(["--port", str(free_port), *arguments], registry, monkeypatch)


def test_a_port_that_is_taken(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}: .*Address already in use"):
            served(["--port", str(port)], registry, monkeypatch)


def served(arguments: list[str], registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["serve.py", "--home", str(registry.home), *arguments])
    serve.main()
