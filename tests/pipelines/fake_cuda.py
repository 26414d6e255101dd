"""What `torch.cuda` offers a feed, on a CPU, and a judge of the order of all that is done: each access of a tensor has
to be ordered behind the last write, by its stream, by an event, or by a wait of its host thread; memory may go back to
the stream that it came from only if that stream knows of all accesses by others; nvJPEG needs its stream to be idle.

A GPU that breaks these rules gives wrong pictures now and then. This one raises `OutOfOrder` at the first chance.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OutOfOrder(AssertionError):
    """Something that a GPU would do too early."""


Clock = dict[int, int]
"""By stream, the number of the last operation that is known to be done before what comes next."""


def merge(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(number, clock.get(stream, 0))


@dataclass
class Memory:
    alive: StorageWeakRef
    of: int  # the stream that it was taken for
    written: tuple[int, int] | None = None  # stream and number
    read: Clock = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)


class FakeStream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.clock: Clock = {}

    def wait_event(self, event: FakeEvent) -> None:
        merge(self.clock, event.clock)

    def wait_stream(self, other: FakeStream) -> None:
        merge(self.clock, other.clock)


class FakeEvent:
    def __init__(self, cuda: FakeCuda, blocking: bool) -> None:
        assert blocking, "a thread that waits should sleep"
        self.cuda = cuda
        self.clock: Clock = {}

    def record(self, stream: FakeStream) -> None:
        self.clock = dict(stream.clock)

    def synchronize(self) -> None:
        merge(self.cuda.of_thread().waited, self.clock)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.stream: FakeStream | None = None
        self.waited: Clock = {}


class _Watch(TorchDispatchMode):
    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema
        given = [*zip(schema.arguments, args, strict=False)]
        given += [(each, kwargs[each.name]) for each in schema.arguments if each.name in kwargs]
        written = [value for each, value in given if each.alias_info is not None and each.alias_info.is_write]
        read = [value for each, value in given if each.alias_info is None]  # else a view: nothing is touched
        if all(each.alias_info is None for each in schema.returns):
            written.append(result)
        self.cuda.done(str(schema.name), tree_leaves(read), tree_leaves(written))
        return result


class FakeCuda:
    """Hand it to `SideStream` as its `api`; the test itself runs inside `training()`."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.default = FakeStream(0)
        self._streams = [self.default]
        self._lock = threading.Lock()
        self._of_thread = _OfThread()
        self._memory: dict[int, Memory] = {}

    # what torch.cuda offers

    def Stream(self, device: torch.device) -> FakeStream:
        self._streams.append(FakeStream(len(self._streams)))
        return self._streams[-1]

    def Event(self, *, blocking: bool = False) -> FakeEvent:
        return FakeEvent(self, blocking)

    def set_device(self, device: torch.device) -> None:
        self.of_thread().device = device

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.of_thread().stream or self.default

    @contextmanager
    def stream(self, stream: FakeStream):
        """Work on `stream` in this thread."""
        mine = self.of_thread()
        if mine.device is None:
            raise OutOfOrder("this thread works on device 0, whatever its worker's device is")
        before, mine.stream = mine.stream, stream
        try:
            with _Watch(self):
                yield
        finally:
            mine.stream = before

    # the judge

    def of_thread(self) -> _OfThread:
        return self._of_thread

    @contextmanager
    def training(self, monkeypatch):
        """Work on the default stream in this thread, and know of `record_stream`."""
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.recorded(tensor, stream))
        with _Watch(self):
            yield
            self._sweep()

    def recorded(self, tensor: torch.Tensor, stream: FakeStream) -> None:
        self._memory_of(tensor).recorded.add(stream.number)

    def done(self, name: str, read: list[Any], written: list[Any]) -> None:
        """An operation was given to the current stream."""
        with self._lock:
            stream, number = self.current_stream(torch.device("cpu")), next(self._numbers)
            merge(stream.clock, self.of_thread().waited)
            self._sweep()
            for memory in self._distinct(read):
                self._behind(stream, memory.written, f"{name} reads what is not written yet")
                memory.read[stream.number] = number
            for memory in self._distinct(written):
                self._behind(stream, memory.written, f"{name} overwrites what is not written yet")
                for access in memory.read.items():
                    self._behind(stream, access, f"{name} overwrites what is still read")
                memory.written, memory.read = (stream.number, number), {}
            stream.clock[stream.number] = number

    def check_idle(self) -> None:
        """What nvJPEG needs: a host that has waited for all that the current stream was given."""
        stream, waited = self.current_stream(torch.device("cpu")), self.of_thread().waited
        if stream.clock.get(stream.number, 0) > waited.get(stream.number, 0):
            raise OutOfOrder("nvJPEG writes into memory that the stream may still read")

    @staticmethod
    def _behind(stream: FakeStream, access: tuple[int, int] | None, what: str) -> None:
        if access and access[0] != stream.number and stream.clock.get(access[0], 0) < access[1]:
            raise OutOfOrder(what)

    def _sweep(self) -> None:
        """Memory that was freed since the last operation goes back to its stream."""
        for key, memory in [*self._memory.items()]:
            if memory.alive.expired():
                del self._memory[key]
                accesses = [*memory.read.items(), *([memory.written] if memory.written else [])]
                known = self._streams[memory.of].clock
                for number, access in accesses:
                    if number != memory.of and number not in memory.recorded and known.get(number, 0) < access:
                        raise OutOfOrder("memory goes back to its stream while another one reads it")

    def _distinct(self, values: list[Any]) -> list[Memory]:
        found = {id(memory): memory for each in values if isinstance(each, torch.Tensor) for memory in [self._of(each)]}
        return list(found.values())

    def _memory_of(self, tensor: torch.Tensor) -> Memory:
        with self._lock:
            return self._of(tensor)

    def _of(self, tensor: torch.Tensor) -> Memory:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._memory:
            stream = self.current_stream(torch.device("cpu"))
            self._memory[key] = Memory(alive=StorageWeakRef(storage), of=stream.number)
        return self._memory[key]
