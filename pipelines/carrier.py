"""Carries what the workers tell to the tracker and the terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from infra.tracking import Tracker
from pipelines.mailbox import Event, Message, Recorded
from pipelines.progress_line import ProgressLine
from pipelines.room import Standstill

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_TAKE_EVERY_S = 0.5
_END_S = 10.0


@contextmanager
def carrying(mailbox: ActorHandle[Any], tracker: Tracker, line: ProgressLine, standstill: Standstill) -> Iterator[None]:
    """On a thread, while the block runs, and then what is left."""
    done = threading.Event()
    carrier = threading.Thread(
        target=_carry, args=(mailbox, tracker, line, standstill, done), name="mailbox", daemon=True
    )
    with line:
        carrier.start()
        try:
            yield
        finally:
            done.set()
            carrier.join(_END_S)


def _carry(
    mailbox: ActorHandle[Any], tracker: Tracker, line: ProgressLine, standstill: Standstill, done: threading.Event
) -> None:
    last = False
    while not last:
        last = done.wait(_TAKE_EVERY_S)
        try:
            messages: list[Message] = ray.get(mailbox.take.remote())
            if messages:
                standstill.heard()
            elif reason := standstill.reason():
                messages = [Event(text=reason)]
        except ray.exceptions.RayError:  # the cluster is gone, and the main thread knows
            return
        for message in messages:
            if isinstance(message, Recorded):
                tracker.log(message.record)
            line.show(message)
        line.tick()
