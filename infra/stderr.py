"""Leave lines out of stderr, also those that compiled code writes to it past Python."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_PATIENCE_S = 5.0  # a process that the block has started may hold the pipe


@contextmanager
def left_out(mark: bytes) -> Iterator[None]:
    """Leave out the lines that contain `mark`, until the block ends; all others arrive, whole lines at a time."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    reader, writer = os.pipe()
    os.dup2(writer, _STDERR)
    os.close(writer)
    thread = threading.Thread(target=_forward, args=(reader, kept, mark), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, _STDERR)  # ends the pipe
        thread.join(_PATIENCE_S)
        if not thread.is_alive():
            os.close(kept)


def _forward(reader: int, kept: int, mark: bytes) -> None:
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            if mark not in line:
                os.write(kept, line)
