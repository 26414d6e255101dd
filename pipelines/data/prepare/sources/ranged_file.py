"""A stored object as a seekable file, for Python's tarfile and pyarrow."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.storage import Store


class RangedFile(io.RawIOBase):
    """Bytes [start, start + length) of an object, fetched `ahead` bytes at a time."""

    def __init__(self, store: Store, path: str, *, length: int, start: int = 0, ahead: int = 1 << 16) -> None:
        super().__init__()
        self.length = length
        self.ahead = ahead  # may be changed between reads
        self._store, self._path, self._start = store, path, start
        self._position = 0
        self._window = b""
        self._window_start = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the bytes reach, for `io.BufferedReader`; return how many were filled."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; fewer only at the end."""
        left = max(0, self.length - self._position)
        size = left if size is None or size < 0 else min(size, left)
        offset = self._position - self._window_start
        if not 0 <= offset <= len(self._window) - size:
            wanted = min(left, max(size, self.ahead))
            self._window = self._store.read(self._path, start=self._start + self._position, length=wanted)
            self._window_start, offset = self._position, 0
        data = self._window[offset : offset + size]
        self._position += len(data)
        return data
