"""Retries of temporary failures: exponential back-off with full jitter, limited in total time, and counted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0

_lock = threading.Lock()
_repeated = 0


def pauses(total_s: float) -> Iterator[float]:
    """Yield the seconds to sleep before each further attempt, until `total_s` have passed since the first pause.

    Each pause is drawn from 0 to a bound that doubles, so clients that failed together retry at different times.
    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015), "full jitter".
    """
    deadline = time.monotonic() + total_s
    bound = _FIRST_PAUSE_S
    while time.monotonic() + (pause := random.uniform(0, bound)) < deadline:
        yield pause
        bound = min(_LONGEST_PAUSE_S, 2 * bound)


def count_retry() -> None:
    """Count one repeated request of this process."""
    global _repeated
    with _lock:
        _repeated += 1


def take_retries() -> int:
    """Return how many requests this process has repeated since the last call."""
    global _repeated
    with _lock:
        taken, _repeated = _repeated, 0
    return taken
