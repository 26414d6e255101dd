"""The CUDA stream on which a feed copies, decodes and crops the next step while the present one trains.

A stream runs its work in order; two streams run theirs in any order, unless an event says otherwise. Three rules keep
the feed's stream and the step's apart:

1. The step's stream waits for an event that the feed recorded behind the last kernel of the share (`receive`).
2. Memory of a share belongs to the feed's stream. `record_stream` tells the allocator that the step's stream reads it
   too, so that freeing the share does not hand the memory to the feed's next copy too early.
3. nvJPEG writes into memory of the feed's stream from a stream of its own, without waiting. So the feed's stream has to
   be idle before each decoding (`settle`): a block that a pending crop still reads may be free on the host already.

Events are waited for on the host by themselves, and sleeping: a stream's own `synchronize` spins, and is refused under
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
        """`api` offers what `torch.cuda` does; None = `torch.cuda` itself for a GPU, and no streams for a CPU."""
        self._device = device
        self._pins = device.type == "cuda"
        self._api = api if api is not None else torch.cuda if device.type == "cuda" else None
        if self._api is not None:
            self._stream = self._api.Stream(device)
            self._stream.wait_stream(self._api.current_stream(device))  # of a split that was just put on the device

    @property
    def asynchronous(self) -> bool:
        """Whether the device works beside the host, so that a thread of the host can keep it supplied."""
        return self._api is not None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the device and the stream the current ones of this thread; each thread begins with device 0."""
        if self._api is None:
            yield
            return
        self._api.set_device(self._device)
        with self._api.stream(self._stream):
            yield

    def host_buffer(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Tensor:
        """Return memory of the host. A GPU copies from it by itself: it is page-locked, and kept for later buffers.

        A buffer may be dropped while the device still copies from it: torch's allocator waits before it is used again.
        For a CPU it is numpy's, which asks for huge pages: torch's takes twice as long to fill for the first time.
        """
        array = np.empty(0 if self._pins else tuple(shape), dtype)
        buffer = torch.from_numpy(array)
        return torch.empty(tuple(shape), dtype=buffer.dtype, pin_memory=True) if self._pins else buffer

    def send(self, parts: Sequence[npt.NDArray[Any]], axis: int = 0) -> Tensor:
        """Join arrays along `axis` and put them on the device: one copy on the host, and one that it does not wait for.

        The result owns its memory, so that blocks of Ray's object store are free again.
        """
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        buffer = self.host_buffer(shape, parts[0].dtype)
        np.concatenate(parts, axis=axis, out=buffer.numpy())
        return self.copied(buffer)

    def copied(self, buffer: Tensor) -> Tensor:
        """Return a `host_buffer`'s content on the device; without streams, the buffer itself."""
        if self._api is None:
            return buffer
        return torch.empty_like(buffer, device=self._device).copy_(buffer, non_blocking=True)

    def settle(self) -> None:
        """Wait until the current stream is idle, as it must be before nvJPEG takes memory from it."""
        if self._api is not None:
            self._recorded().synchronize()

    def finished(self) -> Any:
        """Return an event behind all that the current stream was given so far; None without streams."""
        return self._recorded() if self._api is not None else None

    def receive(self, event: Any, tensors: Iterable[Tensor]) -> None:
        """Let the calling thread's stream read `tensors`: it waits for `event`, the host does not."""
        if self._api is None:
            return
        reader = self._api.current_stream(self._device)
        reader.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(reader)

    def _recorded(self) -> Any:
        """An event of the stream that this thread works on: this one, if it has `entered`."""
        assert self._api is not None
        event = self._api.Event(blocking=True)
        event.record(self._api.current_stream(self._device))
        return event
