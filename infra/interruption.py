"""Ctrl-C: the first one asks a command to stop and to keep its work, the second one ends it at once.

A command listens from its first line on. Until `begin`, while modules are imported, there is nothing to keep: the first
Ctrl-C ends it. Afterwards the first raises KeyboardInterrupt, unless somebody knows a better way to stop (`asking`).
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
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STATUS = 130
AGAIN = "Ctrl-C again ends at once"
_EVERY_S, _ECHO_S = 0.1, 0.3
_LINE_START, _CURSOR = "\r\x1b[K", "\x1b[?25h"  # over "^C" and a live line; a live line hides the cursor


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C, or a SIGTERM, with a line that says what is kept."""


class _CtrlC:
    """The handler of SIGINT, and what has become of it so far in this process."""

    def __init__(self) -> None:
        self.ended = "interrupted: nothing was begun"  # what is printed when the process ends at once
        self.begun = False
        self.pressed = False
        self.raised = False  # as KeyboardInterrupt, which other code may turn into another exception

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pressed or not self.begun:
            self.end()
        self.pressed = self.raised = True
        _say(f"stopping ({AGAIN})")
        raise KeyboardInterrupt

    def end(self) -> NoReturn:
        """End the process without any of its clean-up; what it started ends with it."""
        _say(self.ended)
        if os.isatty(sys.__stdout__.fileno() if sys.__stdout__ else 1):
            os.write(1, _CURSOR.encode())
        os._exit(STATUS)


_ctrl_c = _CtrlC()


def listen() -> None:
    """Answer Ctrl-C from now on, unless whoever started this process had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _ctrl_c)


def begin(ended: str) -> None:
    """From now on the first Ctrl-C stops the command in order; the second prints `ended`.

    What an earlier command of this process was told, as in tests, does not count.
    """
    _ctrl_c.begun, _ctrl_c.ended = True, ended
    _ctrl_c.pressed = _ctrl_c.raised = False


def raised() -> bool:
    """Whether a Ctrl-C was raised: an exception may be what became of it on its way."""
    return _ctrl_c.raised


def quiet() -> None:
    """From now on threads tell nothing: those that Ray Data left behind lose their Ray while the process ends."""
    logging.disable()
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda arguments: None


@contextmanager
def asking(stop: Callable[[], bool], *signals: signal.Signals) -> Iterator[threading.Event]:
    """In the block the first of `signals` calls `stop` on a thread; the second does what it did before the block.

    `stop` returns whether the block ends by itself; if not, KeyboardInterrupt is raised in it. The event that is
    yielded is set as soon as a signal came. Nothing happens where this is not the process's main thread, or for a
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
    """The handler of some signals for a while."""

    def __init__(self, stop: Callable[[], bool], signals: Iterable[signal.Signals]) -> None:
        found = {each: signal.getsignal(each) for each in signals}
        self.came, self._wake = threading.Event(), threading.Event()
        self._stop = stop
        self._before = {each: handler for each, handler in found.items() if handler is not signal.SIG_IGN}
        self._leaves = False  # KeyboardInterrupt is to be raised
        self._left_at = -math.inf
        self._closed = threading.Lock()
        for each in self._before:
            signal.signal(each, self._ask)
        threading.Thread(target=self._tell, name="stop", daemon=True).start()

    def close(self) -> None:
        """Put back the handlers before; from now on the thread sends nothing."""
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
        elif self._leaves:
            self._leaves, self._left_at = False, time.monotonic()
            _ctrl_c.raised = True
            raise KeyboardInterrupt
        elif time.monotonic() - self._left_at < _ECHO_S:
            return
        elif callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, handler)
            os.kill(os.getpid(), number)

    def _tell(self) -> None:
        """On a thread: the handler may have interrupted Ray in the middle of anything."""
        self._wake.wait()
        if self._closed.locked() or self._stop():
            return
        self._leaves = True
        while self._leaves and self._closed.acquire(blocking=False):
            # A signal, since only that ends a wait; again, since one that comes just before a wait does not end it.
            signal.pthread_kill(threading.main_thread().ident or 0, next(iter(self._before)))
            self._closed.release()
            time.sleep(_EVERY_S)


@contextmanager
def explained(explain: Callable[[], str]) -> Iterator[None]:
    """A Ctrl-C in the block says what is kept, unless something inside has said it."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        try:
            line = explain()
        except Exception:  # storage that is away must not hide that this was a Ctrl-C
            raise error from None
        raise Interrupted(line) from None


def _say(line: str) -> None:
    """By the system call: a handler may have interrupted a print."""
    os.write(2, f"{_LINE_START if os.isatty(2) else ''}{line}\n".encode())
