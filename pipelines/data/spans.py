"""Byte ranges of shards: fetched many at a time, verified against the manifest, kept on the node if so wished."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.patience import count_retry
from pipelines.data.quarantine import Fault

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.data.cache import SpanCache
    from pipelines.data.manifest import Shard, Span

_FETCHES = 2  # a first mismatch may be the transfer's fault; a second one is the storage's
_THREADS = 8  # requests of one process under way at once: object storage answers slowly but many at a time
_REQUEST_BYTES = 16 * 2**20  # of one request for neighbouring ranges


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a shard."""

    shard: Shard
    span: Span
    name: str  # in messages


@dataclass(frozen=True, slots=True)
class SpanReader:
    """Fetches parts of one data set."""

    store: Store
    cache: SpanCache | None = None

    def fetch(self, parts: Sequence[Part]) -> list[memoryview | Fault]:
        """The bytes of each part, or why they cannot be trusted: twice they differed from the manifest.

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

    def _request(self, parts: list[Part]) -> list[memoryview | Fault]:
        """Neighbouring parts of one shard, those that are not on the node by one request."""
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

    def _verified(self, part: Part) -> memoryview | Fault:
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


def _joined(parts: Sequence[Part]) -> Iterator[list[int]]:
    """Places of the parts that one request fetches: those of a shard that follow each other without a gap."""
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
