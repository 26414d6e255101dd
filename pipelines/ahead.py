"""One item ahead: a thread makes the next one while the present one is in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterator[Item], context: Callable[[], AbstractContextManager[None]]) -> Generator[Item]:
    """Yield `items` in their order; a thread, inside `context`, makes each while the one before it is in use.

    An exception of `items` comes out in its place, behind all that was made before it. Closing the iterator ends the
    thread as soon as the item that it is at is made.
    """
    made: queue.SimpleQueue[tuple[Item] | BaseException | None] = queue.SimpleQueue()
    taken = threading.Semaphore(0)
    closed = False

    def work() -> None:
        try:
            with context():
                while not closed and (made_now := _next(items)):
                    made.put(made_now)
                    del made_now  # the memory of an item belongs to whoever takes it
                    taken.acquire()
        except BaseException as error:  # whatever it is, it belongs to the thread that waits for the item
            made.put(error)
        else:
            made.put(None)

    threading.Thread(target=work, name="one-ahead", daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            taken.release()
            yield item[0]
    finally:
        closed = True
        taken.release()


def _next(items: Iterator[Item]) -> tuple[Item] | None:
    for item in items:
        return (item,)
    return None
