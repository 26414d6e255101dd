"""The side stream: the CUDA stream that copies, decodes and crops the next rank batch while the current one trains.

A stream runs its work in order; two streams run theirs in any order, unless an event orders them. Three rules keep the
side stream and the step's stream apart:

1. The step's stream waits for an event that the side stream records after the last kernel of a rank batch (`receive`).
2. The memory of a rank batch belongs to the side stream. `record_stream` marks it as read by the step's stream too.
   Otherwise, once the rank batch is freed, the side stream's next copy could overwrite memory that a step still reads.
3. nvJPEG writes into memory of the side stream, but works on another stream and does not wait. So the side stream must
   be idle before each decoding (`settle`): a pending crop may still read a block that the host has already freed.

The host waits for events, and sleeps while it waits. A stream's `synchronize` would spin. It is also refused under
`torch.cuda.set_sync_debug_mode("error")`, which forbids the *training* thread to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class SideStream:
    """A device's side stream. A CPU has none: there, every call has finished its work when it returns."""

    def __init__(self, device: torch.device, api: Any = None) -> None:
        """Create the stream. `api` replaces `torch.cuda`; None = `torch.cuda` for a GPU, no streams for a CPU."""
        self._device = device
        self._pins = device.type == "cuda"
        self._api = api if api is not None else torch.cuda if device.type == "cuda" else None
        if self._api is not None:
            self._stream = self._api.Stream(device)
            self._stream.wait_stream(self._api.current_stream(device))  # a split may still be on its way to the device

    @property
    def asynchronous(self) -> bool:
        """True if the device works in parallel to the host, so that a host thread can prepare its next work."""
        return self._api is not None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the device and the stream current in this thread; a new thread has device 0."""
        if self._api is None:
            yield
            return
        self._api.set_device(self._device)
        with self._api.stream(self._stream):
            yield

    def host_buffer(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Tensor:
        """Return a buffer in host memory. For a GPU it is page-locked, so the GPU copies from it without the host.

        A buffer may be freed while the device still copies from it: torch's allocator waits before it reuses the
        memory. For a CPU the memory is numpy's, which uses huge pages: torch's takes twice as long to fill at first.
        """
        array = np.empty(0 if self._pins else tuple(shape), dtype)
        buffer = torch.from_numpy(array)
        return torch.empty(tuple(shape), dtype=buffer.dtype, pin_memory=True) if self._pins else buffer

    def send(self, parts: Sequence[npt.NDArray[Any]], axis: int = 0) -> Tensor:
        """Join arrays along `axis` and copy them to the device; the host does not wait for the copy to the device.

        The result owns its memory, so Ray's object store can free the blocks.
        """
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        buffer = self.host_buffer(shape, parts[0].dtype)
        np.concatenate(parts, axis=axis, out=buffer.numpy())
        return self.copied(buffer)

    def copied(self, buffer: Tensor) -> Tensor:
        """Return the content of a `host_buffer` on the device; on a CPU, the buffer itself."""
        if self._api is None:
            return buffer
        return torch.empty_like(buffer, device=self._device).copy_(buffer, non_blocking=True)

    def settle(self) -> None:
        """Wait until the current stream is idle. This is needed before nvJPEG takes memory from it."""
        if self._api is not None:
            self._recorded().synchronize()

    def finished(self) -> Any:
        """Return an event after all work of the current stream so far; None on a CPU."""
        return self._recorded() if self._api is not None else None

    def receive(self, event: Any, tensors: Iterable[Tensor]) -> None:
        """Let the calling thread's stream read `tensors`. The stream waits for `event`; the host does not wait."""
        if self._api is None:
            return
        reader = self._api.current_stream(self._device)
        reader.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(reader)

    def _recorded(self) -> Any:
        """Record an event on this thread's current stream, which is the side stream inside `entered`."""
        assert self._api is not None
        event = self._api.Event(blocking=True)
        event.record(self._api.current_stream(self._device))
        return event
