"""Wait for what a test needs, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool],
    timeout: float = 120.0,
    what: str = "event",
    told: Callable[[], str] = lambda: "",
    every: float = 0.05,
) -> None:
    """Return as soon as `condition` holds; fail after `timeout` seconds with the end of what `told` returns."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {timeout:.0f} s:\n{told()[-4000:]}")
        time.sleep(every)
