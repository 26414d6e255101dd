"""A PostgreSQL of the test's own, from Debian's package."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_server import a_free_port


@contextmanager
def serve_postgres(password: str) -> Iterator[str]:
    """The URI of an empty database on loopback; it takes nobody without the password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a Unix socket lies in it
    (folder / "password").write_text(password)
    if user:
        for each in (folder, folder / "password"):
            shutil.chown(each, user)
    port = a_free_port()
    started: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
    making = [programs[-1] / "initdb", "-D", "data", "-U", "mlflow", "-A", "scram-sha-256", "--pwfile=password"]
    subprocess.run([*map(str, making), "--no-sync"], check=True, **started)
    serving = [programs[-1] / "postgres", "-D", "data", "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(list(map(str, serving)), stderr=log, **started)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql://mlflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # "fast": it waits for no client
        server.wait(30)
        shutil.rmtree(folder)


def a_password() -> str:
    return secrets.token_hex(16)


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
