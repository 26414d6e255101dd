"""A command on a terminal of its own, as a person starts it: Ctrl-C reaches its whole foreground process group."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).parents[2]
CTRL_C = b"\x03"
_PATIENCE_S = 600.0
_ENDING_S = 240.0  # below any test's limit, so that the failure names the processes
# The terminal becomes the controlling one of a new session; SIGINT is what it is in a shell's foreground.
_LOGIN = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
# The same, but a parent keeps the session, as a shell does. If the first process of a session ends, the kernel hangs
# the terminal up, and what was printed in the last moment may be lost.
_SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for each in (signal.SIGINT, signal.SIGTTOU):
    signal.signal(each, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    for each in (signal.SIGINT, signal.SIGTTOU):
        signal.signal(each, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
os.write(1, b"\\0%d\\0" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.pause()
"""
_STATUS = re.compile(r"\0(-?\d+)\0")  # as the shell prints it
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A Python script and what it prints; both ends are closed, and whatever is left killed, when the block ends."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], shell: bool = False
    ) -> None:
        """Start the script; `shell` = below a process that keeps the terminal, for scripts that end in a moment."""
        self._master, slave = pty.openpty()
        self._shell = shell
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SHELL if shell else _LOGIN, sys.executable, *command],
            cwd=cwd,
            env=dict(environment),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._raw = b""
        self._more = threading.Condition()
        self._open = True
        threading.Thread(target=self._read, name="terminal", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in [self.process.pid, *self.left()]:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    @property
    def text(self) -> str:
        """Everything printed so far, without colours, moves of the cursor, and the terminal's own "^C"."""
        plain = _STATUS.sub("", _CONTROL.sub("", self._raw.decode(errors="replace"))).replace("^C", "")
        return plain.replace("\r\n", "\n").replace("\r", "\n")

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    def press(self, keys: bytes = CTRL_C) -> None:
        """What the keyboard sends: the terminal makes a SIGINT for the foreground group of it."""
        os.write(self._master, keys)

    def wait_for(self, pattern: str) -> str:
        """The text that matches, as soon as it is printed."""
        found = self._wait(lambda: re.search(pattern, self.text))
        assert found, f"{pattern!r} did not come:\n{self.text}"
        return found.group()

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return as soon as something is so that the command does not print."""
        deadline = time.monotonic() + _PATIENCE_S
        while not happened():
            assert self._open and time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def ended(self) -> int:
        """The exit status, once the command has ended and all that it printed is read."""
        if self._shell:
            status = self._wait(lambda: _STATUS.search(self._raw.decode(errors="replace")))
            assert status, self.text
            return int(status.group(1))
        self._wait(lambda: not self._open or None)
        return self.process.wait(_PATIENCE_S)

    def left(self) -> list[int]:
        """Processes of the session but the first: Ray's, and the command's own children."""
        found = []
        for each in psutil.pids():
            try:
                if each != self.process.pid and os.getsid(each) == self.process.pid and _alive(each):
                    found.append(each)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def check_all_gone(self) -> None:
        """Check that every process of the session ends by itself: workers notice in seconds that their Ray is gone."""
        deadline = time.monotonic() + _ENDING_S
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [_described(each) for each in self.left()]
        assert not left, "\n".join([*left, self.text])

    def _wait(self, happened: Callable[[], re.Match[str] | bool | None]) -> re.Match[str] | None:
        deadline = time.monotonic() + _PATIENCE_S
        with self._more:
            while True:
                found = happened()
                if found or time.monotonic() > deadline or (not self._open and not found):
                    return found if isinstance(found, re.Match) else None
                self._more.wait(1)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other end open
                data = b""
            with self._more:
                self._raw += data
                self._open = bool(data)
                self._more.notify_all()
            if not data:
                return


def _alive(pid: int) -> bool:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _described(pid: int) -> str:
    """What a process is, and where the kernel holds each of its threads."""
    try:
        process = psutil.Process(pid)
        threads = sorted(Path(f"/proc/{pid}/task").iterdir())
        held = ", ".join(f"{(each / 'comm').read_text().strip()}: {(each / 'wchan').read_text()}" for each in threads)
        return f"{pid}, child of {process.ppid()}, {process.status()}: {' '.join(process.cmdline())[:200]} [{held}]"
    except (psutil.NoSuchProcess, OSError):
        return f"{pid}: ended meanwhile"
