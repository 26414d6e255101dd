"""A cache of shards' byte ranges on a node's disk, shared by all tasks of the node, for data in remote storage.

An entry is a file named by the sha256 of its content, which is verified at every read. Files are written under a
temporary name first, so that no task reads half a file. At the size limit, the least recently used entries are
removed. A small file, under a lock, counts the bytes of all entries before a new one is written. If the disk is full
or not writable, the process logs one warning and stops writing to the cache.
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
from functools import lru_cache
from pathlib import Path

from pipelines.config.sections import CacheConfig

_KEPT = 0.9  # fraction of the limit that is used after entries were removed
_USED = ".used"  # file with the bytes of all entries, in ASCII; also the lock file
_TEMPORARY = ".tmp"
_ABANDONED_S = 3600.0  # age at which a temporary file counts as abandoned by a killed task


@lru_cache(maxsize=4)
def open_cache(config: CacheConfig) -> SpanCache:
    """Return this process's cache for a configuration."""
    return SpanCache(Path(config.folder).expanduser().absolute(), config.cap_bytes)


class SpanCache:
    """A cache of byte strings, by their sha256."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self.folder = folder
        self.cap_bytes = cap_bytes
        self._failure: str | None = None  # why this process stopped writing
        self._warned = False

    def get(self, sha256: str) -> memoryview | None:
        """Return the bytes with this hash; None if they are not in the cache or are damaged."""
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
        """Store the bytes with this hash, if the disk is writable and the limit allows."""
        if self._failure or len(data) > self.cap_bytes * _KEPT:
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
            with self._used():  # else a task that counts the entries may see neither name
                os.replace(temporary, file)
        except OSError as error:
            self._failure = (
                f"data.cache_dir {self.folder} on {os.uname().nodename} cannot be written: {error.strerror or error}"
            )
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def take_warning(self) -> str:
        """Return why this process stopped writing, at the first call after that; else ""."""
        if not self._failure or self._warned:
            return ""
        self._warned = True
        return f"{self._failure}; training continues without it"

    def _file(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _reserve(self, temporary: Path, count: int) -> None:
        """Reserve `count` bytes: evict entries above the limit, count the bytes, and give the file its size."""
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
        """Remove the least recently used entries until at most `target` bytes are left. Return the bytes left."""
        entries = sorted(self._entries())
        left = sum(size for _, size, _ in entries)
        for _, size, file in entries:
            if left <= target:
                break
            if not file.name.endswith(_TEMPORARY):  # another task may be writing a temporary file
                file.unlink(missing_ok=True)
                left -= size
        return left

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (last use, bytes, file) of each entry. Remove temporary files that a killed task left."""
        for file in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                known = file.stat()
                if file.name.endswith(_TEMPORARY) and time.time() - known.st_mtime > _ABANDONED_S:
                    file.unlink()
                else:
                    yield known.st_mtime, known.st_size, file
