"""Servers as child processes on loopback, each a group of its own: ready once it answers, ended with its block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from infra.errors import UserError
from infra.storage import open_store

HOST = "127.0.0.1"
_STOP_TIMEOUT_S = 10.0
_ATTEMPTS = 200
_LEAST_BYTES = 16 << 20  # logs, databases and their journals begin at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """What to run, and how to know that it serves."""

    name: str  # as messages say it: "the S3 server"
    command: Sequence[str]  # nothing secret: every user of the machine sees it
    environment: Mapping[str, str]  # on top of this process's own
    log: Path  # grows over restarts
    ready: Callable[[], bool]
    timeout_s: float
    cwd: Path | None = None


def make_folder(folder: str | Path) -> Path:
    """Make the folder that a server keeps its state in; returns its absolute path.

    Raises:
        UserError: it cannot be made or written, or its disk is full.
    """
    folder = Path(folder).absolute()
    open_store(str(folder)).check_access(write=True)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < _LEAST_BYTES:
        raise UserError(f"{free >> 20} MiB are free in {folder}: free some space, or name a folder on another disk")
    return folder


@contextmanager
def running(child: Child) -> Iterator[int]:
    """The pid of the process, which is that of its group, until the block ends.

    Raises:
        UserError: it ended, or was not ready in time; the message names its log.
    """
    with child.log.open("ab") as log:
        process = subprocess.Popen(
            child.command,
            env=os.environ | dict(child.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=child.cwd,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + child.timeout_s
        while not child.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"{child.name} did not start: see {child.log}")
            time.sleep(0.1)
        yield process.pid
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the first process, then end whatever is left of the group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_when_told() -> None:
    """SIGINT and SIGTERM end this process with status 0, and what it serves with it."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: sys.exit(0))


def serve_until_told(lines: str) -> None:
    """Tell on stdout how the server that runs is used, and wait for SIGINT or SIGTERM."""
    sys.stdout.write(f"{lines}; Ctrl-C stops it\n")
    sys.stdout.flush()
    while True:
        signal.pause()


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 within 5 s."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def is_free(port: int) -> bool:
    """Whether nothing listens there on loopback."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except OSError:
        return False
    return True


def pick_port(wanted: int | None, usual: int) -> int:
    """The port that was asked for, else the usual one or the next free one above it.

    Raises:
        UserError: the port that was asked for is taken.
    """
    if wanted is not None:
        if not is_free(wanted):
            raise UserError(f"port {wanted} is taken: choose another, or leave it out for a free one")
        return wanted
    free = next(filter(is_free, range(usual, usual + _ATTEMPTS)), None)
    if free is None:
        raise UserError(f"no port from {usual} to {usual + _ATTEMPTS - 1} is free: name one")
    return free
