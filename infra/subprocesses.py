"""Server processes on loopback, each in a separate process group: ready once it answers, ended with its block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import psutil

from infra.errors import UserError
from infra.storage import open_store

HOST = "127.0.0.1"
_STOP_TIMEOUT_S = 10.0
_ATTEMPTS = 200
_LEAST_BYTES = 16 << 20  # logs, databases and their journals are written at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A server process to run, and the check that it is ready."""

    name: str  # as messages name it: "the S3 server"
    command: Sequence[str]  # holds no secret: every user of the machine can read it
    environment: Mapping[str, str]  # added to the environment of this process
    log: Path  # a restart appends to it
    ready: Callable[[], bool]
    timeout_s: float
    cwd: Path | None = None


def make_folder(folder: str | Path) -> Path:
    """Make the folder that keeps a server's state; return its absolute path.

    Raises:
        UserError: the folder cannot be made or written, or its disk is full.
    """
    folder = Path(folder).absolute()
    open_store(str(folder)).check_access(write=True)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < _LEAST_BYTES:
        raise UserError(f"{free >> 20} MiB are free in {folder}: free some space, or name a folder on another disk")
    return folder


@contextmanager
def running(child: Child) -> Iterator[int]:
    """Run the process until the block ends; yield its pid, which is also the id of its group.

    Raises:
        UserError: the process ended, or was not ready in time; the message names its log.
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
    """Terminate the first process, then kill the rest of its group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_end(processes: Collection[psutil.Process], seconds: float) -> None:
    """Wait until the processes have ended, which need not be children of this one; at most so many seconds."""
    deadline = time.monotonic() + seconds
    while not all(map(ended, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)


def ended(process: psutil.Process) -> bool:
    """Return whether a process has ended; a zombie counts: its parent may be unrelated to us."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def exit_on_sigterm() -> None:
    """Let SIGINT and SIGTERM end this process with status 0; its servers end with it."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: sys.exit(0))


def serve_until_sigterm(lines: str) -> None:
    """Print how to use the running server, then wait for SIGINT or SIGTERM."""
    sys.stdout.write(f"{lines}; Ctrl-C stops it\n")
    sys.stdout.flush()
    while True:
        signal.pause()


def answers(url: str) -> bool:
    """Return whether a GET of `url` gets status 200 within 5 s."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def is_free(port: int) -> bool:
    """Return whether no process listens on this port of loopback."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except OSError:
        return False
    return True


def pick_port(wanted: int | None, usual: int) -> int:
    """Return the wanted port; without one, the usual port or the next free one above it.

    Raises:
        UserError: the wanted port is taken, or no port is free.
    """
    if wanted is not None:
        if not is_free(wanted):
            raise UserError(f"port {wanted} is taken: choose another, or leave it out for a free one")
        return wanted
    free = next(filter(is_free, range(usual, usual + _ATTEMPTS)), None)
    if free is None:
        raise UserError(f"no port from {usual} to {usual + _ATTEMPTS - 1} is free: name one")
    return free
