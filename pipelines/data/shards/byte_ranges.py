"""Byte ranges of shards: fetched in parallel, verified against the manifest, and cached on the node if configured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.retry import count_retry
from pipelines.data.shards.bad_records import Fault

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.data.shards.disk_cache import SpanCache
    from pipelines.data.shards.manifest import Shard, Span

_FETCHES = 2  # a first mismatch may come from the transfer; a second one comes from the storage
_THREADS = 8  # parallel requests per process: object storage has a high latency
_REQUEST_BYTES = 16 * 2**20  # limit of one request for neighbouring ranges


@dataclass(frozen=True, slots=True)
class FileRange:
    """A range of a shard."""

    shard: Shard
    span: Span
    name: str  # name in messages


@dataclass(frozen=True, slots=True)
class SpanReader:
    """A reader of byte ranges of one data set."""

    store: Store
    cache: SpanCache | None = None

    def fetch(self, parts: Sequence[FileRange]) -> list[memoryview | Fault]:
        """Return the bytes of each part, or a fault if they differed from the manifest twice.

        Raises:
            UserError: a shard is missing, or the storage does not answer.
        """
        requests = list(_joined(parts))

        def ask(places: list[int]) -> list[memoryview | Fault]:
            return self._request([parts[place] for place in places])

        answers = map(ask, requests) if len(requests) == 1 else _pool().map(ask, requests)
        found: dict[int, memoryview | Fault] = {}
        for places, answer in zip(requests, answers, strict=True):
            found |= zip(places, answer, strict=True)
        return [found[place] for place in range(len(parts))]

    def _request(self, parts: list[FileRange]) -> list[memoryview | Fault]:
        """Fetch neighbouring parts of one shard: by one request if none of them is cached."""
        found = {place: data for place, part in enumerate(parts) if (data := self._cached(part.span)) is not None}
        if not found and len(parts) > 1:
            start = parts[0].span.start
            whole = memoryview(self._read(parts[0].shard, start, sum(part.span.length for part in parts)))
            for place, part in enumerate(parts):
                data = whole[part.span.start - start :][: part.span.length]
                if _sha256(data) == part.span.sha256:
                    found[place] = data
                    self._keep(part.span, data)
                else:
                    count_retry()
        return [found[place] if place in found else self._verified(part) for place, part in enumerate(parts)]

    def _verified(self, part: FileRange) -> memoryview | Fault:
        span, actual, length = part.span, "", 0
        for attempt in range(_FETCHES):
            if attempt:
                count_retry()
            data = memoryview(self._read(part.shard, span.start, span.length))
            actual, length = _sha256(data), len(data)
            if actual == span.sha256:
                self._keep(span, data)
                return data
        found = f"sha256 {actual[:16]}… ({length:,} bytes)"
        expected = f"{span.sha256[:16]}… ({span.length:,} bytes)"
        return Fault("unreadable", f"{part.name} has {found}, the manifest says {expected}")

    def _read(self, shard: Shard, start: int, length: int) -> bytes:
        try:
            return self.store.read(shard.path, start=start, length=length)
        except FileNotFoundError:
            raise UserError(
                f"shard {shard.path} is missing in {self.store.description}: restore it or prepare again"
            ) from None

    def _cached(self, span: Span) -> memoryview | None:
        return self.cache.get(span.sha256) if self.cache else None

    def _keep(self, span: Span, data: memoryview) -> None:
        if self.cache:
            self.cache.put(span.sha256, data)


def _joined(parts: Sequence[FileRange]) -> Iterator[list[int]]:
    """Yield the indexes of the parts of each request: parts of one shard that are adjacent, without gaps."""
    order = sorted(range(len(parts)), key=lambda place: (parts[place].shard.path, parts[place].span.start))
    request: list[int] = []
    for place in order:
        if request:
            first, last, span = parts[request[0]], parts[request[-1]], parts[place].span
            follows = parts[place].shard.path == last.shard.path and span.start == last.span.start + last.span.length
            if not follows or span.start + span.length - first.span.start > _REQUEST_BYTES:
                yield request
                request = []
        request.append(place)
    if request:
        yield request


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="fetch")
