"""Ctrl-C: the first one asks a command to stop and keep its work, the second one ends it at once.

A command handles Ctrl-C from its first line on. Before `begin`, while modules are imported, there is no work to keep,
and the first Ctrl-C ends the command. After `begin`, the first Ctrl-C raises KeyboardInterrupt, or, inside an `asking`
block, calls a function that stops the command.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

STATUS = 130
AGAIN = "Ctrl-C again ends at once"
_EVERY_S, _ECHO_S = 0.1, 0.3
_ANSWER_S = 10.0
_LINE_START, _CURSOR = "\r\x1b[K", "\x1b[?25h"  # overwrite "^C" and a live line; show the cursor that a live line hides


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C or SIGTERM, with a line that says what is kept."""


class _CtrlC:
    """The handler of SIGINT, and the state of Ctrl-C in this process."""

    def __init__(self) -> None:
        self.ended = "interrupted: nothing was started"  # printed if the process ends at once
        self.begun = False
        self.pressed = False
        self.raised = False  # as KeyboardInterrupt, which other code may turn into another exception

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pressed or not self.begun:
            self.end()
        self.pressed = self.raised = True
        _print(f"stopping ({AGAIN})")
        raise KeyboardInterrupt

    def end(self) -> NoReturn:
        """End the process at once, without clean-up; processes that it started end with it."""
        _print(self.ended)
        if os.isatty(sys.__stdout__.fileno() if sys.__stdout__ else 1):
            os.write(1, _CURSOR.encode())
        os._exit(STATUS)


_ctrl_c = _CtrlC()


def listen() -> None:
    """Handle Ctrl-C from now on, unless the parent process set it to be ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _ctrl_c)


def begin(ended: str) -> None:
    """Let the first Ctrl-C stop the command cleanly from now on; the second prints `ended`.

    The Ctrl-C of an earlier command in this process, as in tests, is forgotten.
    """
    _ctrl_c.begun, _ctrl_c.ended = True, ended
    _ctrl_c.pressed = _ctrl_c.raised = False


def raised() -> bool:
    """Return whether a Ctrl-C was raised; other code may have turned it into another exception."""
    return _ctrl_c.raised


def last_line(line: str) -> None:
    """Print a command's last line, and silence the process from then on.

    Threads left by Ray Data lose their Ray while the process ends. Ray prints what its daemons report of it, and its
    C++ code writes to the terminal by itself.
    """
    logging.disable()
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda arguments: None
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
    for stream in (stdout, stderr):
        with suppress(OSError):
            stream.flush()
    if stderr is not sys.__stderr__:  # a test's
        stderr.write(f"{line}\n")
        return
    terminal = os.dup(2)
    for descriptor in (1, 2):
        os.dup2(sys.stderr.fileno(), descriptor)
    os.write(terminal, f"{line}\n".encode())


@contextmanager
def asking(stop: Callable[[], bool], *signals: signal.Signals) -> Iterator[threading.Event]:
    """Call `stop` on a thread at the first of `signals` in the block; the second acts as before the block.

    `stop` returns whether the block ends by itself; if not, KeyboardInterrupt is raised in the block. The yielded event
    is set as soon as a signal arrives. If the block ends meanwhile, its end waits at most ten seconds until `stop` has
    returned, so that the output of `stop` precedes what follows. Outside the main thread nothing happens, nor for a
    signal that is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    block = _Asking(stop, signals)
    try:
        yield block.came
    finally:
        block.close()


class _Asking:
    """The handler of some signals while a block runs."""

    def __init__(self, stop: Callable[[], bool], signals: Iterable[signal.Signals]) -> None:
        found = {each: signal.getsignal(each) for each in signals}
        self.came, self._wake, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._stop = stop
        self._before = {each: handler for each, handler in found.items() if handler is not signal.SIG_IGN}
        self._must_raise = False  # KeyboardInterrupt, at the next signal
        self._raised_at = -math.inf
        self._closed = threading.Lock()
        for each in self._before:
            signal.signal(each, self._ask)
        threading.Thread(target=self._call_stop, name="stop", daemon=True).start()

    def close(self) -> None:
        """Wait for a `stop` that was called, and restore the previous handlers; the thread sends no signal then."""
        if self.came.is_set():
            self._answered.wait(_ANSWER_S)
        self._closed.acquire()
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._wake.set()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        handler = self._before[signal.Signals(number)]
        if not self.came.is_set():
            _ctrl_c.pressed = True
            self.came.set()
            self._wake.set()
        elif self._must_raise:
            self._must_raise, self._raised_at = False, time.monotonic()
            _ctrl_c.raised = True
            raise KeyboardInterrupt
        elif time.monotonic() - self._raised_at < _ECHO_S:
            return
        elif callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, handler)
            os.kill(os.getpid(), number)

    def _call_stop(self) -> None:
        """Call `stop`, on a thread, because the handler may have interrupted Ray in the middle of anything."""
        self._wake.wait()
        if self._closed.locked():
            return
        try:
            ends = self._stop()
        finally:
            self._answered.set()
        if ends:
            return
        self._must_raise = True
        while self._must_raise and self._closed.acquire(blocking=False):
            # Only a signal ends a wait. It is repeated, since a signal just before the wait does not end the wait.
            signal.pthread_kill(threading.main_thread().ident or 0, next(iter(self._before)))
            self._closed.release()
            time.sleep(_EVERY_S)


@contextmanager
def explained(explain: Callable[[], str]) -> Iterator[None]:
    """Make a Ctrl-C in the block say what is kept, unless code inside the block does."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        try:
            line = explain()
        except Exception:  # unreachable storage must not hide the Ctrl-C
            raise error from None
        raise Interrupted(line) from None


def _print(line: str) -> None:
    """Write by system call, because the handler may have interrupted a print."""
    os.write(2, f"{_LINE_START if os.isatty(2) else ''}{line}\n".encode())
