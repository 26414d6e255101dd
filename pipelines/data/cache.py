"""A cache of shards' byte ranges on a node's own disk, shared by all tasks there, for data that lies far away.

An entry is a file named by the sha256 of its content, verified whenever it is read. Files are written under another
name first, so that no task sees half of one. When the cap is reached, those that were used longest ago make room: what
the entries have is counted in one small file, under a lock, before anything is written. A disk that is full or
cannot be written ends the writing, with one warning, and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_KEPT = 0.9  # of the cap, when room has been made
_USED = ".used"  # bytes of all entries, in ASCII; the lock is held on it
_TEMPORARY = ".tmp"
_ABANDONED_S = 3600.0  # age of a temporary file that nobody is writing any more


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Where a node keeps byte ranges of shards."""

    folder: str  # on a disk of the node itself; made where it is missing
    cap_bytes: int


@lru_cache(maxsize=4)
def open_cache(config: CacheConfig) -> SpanCache:
    """The cache of this process."""
    return SpanCache(Path(config.folder).expanduser().absolute(), config.cap_bytes)


class SpanCache:
    """Bytes by their sha256."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self.folder = folder
        self.cap_bytes = cap_bytes
        self._trouble: str | None = None  # why this process has given up writing
        self._told = False

    def get(self, sha256: str) -> memoryview | None:
        """The bytes, if they are here and whole."""
        file = self._file(sha256)
        try:
            data = file.read_bytes()
            os.utime(file)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return memoryview(data)
        file.unlink(missing_ok=True)
        return None

    def put(self, sha256: str, data: memoryview) -> None:
        """Keep bytes that have this hash, if the disk takes them and the cap allows."""
        if self._trouble or len(data) > self.cap_bytes * _KEPT:
            return
        file = self._file(sha256)
        temporary = file.with_name(f".{sha256}.{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            if file.exists():
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            self._reserve(temporary, len(data))
            with temporary.open("r+b") as opened:
                opened.write(data)
            with self._used():  # else somebody who counts the entries may see neither name
                os.replace(temporary, file)
        except OSError as error:
            self._trouble = (
                f"data.cache_dir {self.folder} on {os.uname().nodename} takes no more: {error.strerror or error}"
            )
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def take_warning(self) -> str:
        """Why this process has given up writing, when it is asked for the first time; else ""."""
        if not self._trouble or self._told:
            return ""
        self._told = True
        return f"{self._trouble}; training goes on without it"

    def _file(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _reserve(self, temporary: Path, count: int) -> None:
        """Count `count` bytes more, and make room if that is too many; the file has its size before its content."""
        with self._used() as used:
            total = int(used.read() or 0) + count
            if total > self.cap_bytes:
                total = self._evict(round(self.cap_bytes * _KEPT) - count) + count
            used.seek(0)
            used.truncate()
            used.write(str(total).encode())
            temporary.touch()
            os.truncate(temporary, count)

    @contextmanager
    def _used(self) -> Iterator[io.BufferedRandom]:
        descriptor = os.open(self.folder / _USED, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _evict(self, target: int) -> int:
        """Remove what was used longest ago until no more than `target` bytes are left; returns what is left."""
        entries = sorted(self._entries())
        left = sum(size for _, size, _ in entries)
        for _, size, file in entries:
            if left <= target:
                break
            if not file.name.endswith(_TEMPORARY):  # else another task is writing it
                file.unlink(missing_ok=True)
                left -= size
        return left

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, file) of each entry; on the way, files that a killed task left are removed."""
        for file in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                known = file.stat()
                if file.name.endswith(_TEMPORARY) and time.time() - known.st_mtime > _ABANDONED_S:
                    file.unlink()
                else:
                    yield known.st_mtime, known.st_size, file
