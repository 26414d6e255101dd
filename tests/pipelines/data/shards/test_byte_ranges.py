"""What is asked of the storage for an item: few requests, all verified, the next item's while this one is used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from infra.retry import take_retries
from infra.storage import LocalStore
from pipelines.data.shards import reader as read
from pipelines.data.shards.bad_records import Fault
from pipelines.data.shards.byte_ranges import FileRange, SpanReader
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import IntegrityError, Reader
from pipelines.data.shards.work_item import WorkItem

Mnist = tuple[LocalStore, Manifest]
Request = tuple[str, int, int]


class Watched:
    """A store that writes down what is read, and may change it."""

    description = "watched"

    def __init__(self, store: LocalStore, change: Callable[[Request, bytes], bytes] = lambda _, data: data) -> None:
        self._store, self._change = store, change
        self.requests: list[Request] = []

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        assert length is not None
        request = (path, start, length)
        self.requests.append(request)
        return self._change(request, self._store.read(path, start=start, length=length))


@pytest.fixture(autouse=True)
def like_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_footers", read._Footers())
    take_retries()


def parts_of(manifest: Manifest, shard: int, *groups: int) -> list[FileRange]:
    found = manifest.shards[shard]
    return [FileRange(found, found.groups[group], f"row group {group}") for group in groups]


def test_neighbours_of_a_shard_are_one_request(mnist: Mnist) -> None:
    store, manifest = mnist
    watched: Any = Watched(store)
    parts = [*parts_of(manifest, 0, 5, 3, 4, 9), *parts_of(manifest, 1, 6)]
    for part, data in zip(parts, SpanReader(watched).fetch(parts), strict=True):
        assert data == store.read(part.shard.path, start=part.span.start, length=part.span.length)
    groups = manifest.shards[0].groups
    together = sum(groups[number].length for number in (3, 4, 5))
    assert sorted(watched.requests) == [
        ("train-00000.parquet", groups[3].start, together),
        ("train-00000.parquet", groups[9].start, groups[9].length),
        ("train-00001.parquet", manifest.shards[1].groups[6].start, manifest.shards[1].groups[6].length),
    ]


def test_requests_stay_small(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest = mnist
    watched: Any = Watched(store)
    length = manifest.shards[0].groups[0].length
    monkeypatch.setattr("pipelines.data.shards.byte_ranges._REQUEST_BYTES", 2 * length)
    SpanReader(watched).fetch(parts_of(manifest, 0, 0, 1, 2, 3, 4))
    assert [request[2] // length for request in sorted(watched.requests)] == [2, 2, 1]


def test_of_a_joined_request_only_what_is_wrong_is_fetched_again(mnist: Mnist) -> None:
    store, manifest = mnist
    groups = manifest.shards[0].groups

    def flip(request: Request, data: bytes) -> bytes:
        damaged = bytearray(data)
        if len(data) > groups[0].length:
            damaged[groups[0].length + 10] ^= 1
        return bytes(damaged)

    watched: Any = Watched(store, flip)
    _, second, _ = SpanReader(watched).fetch(parts_of(manifest, 0, 0, 1, 2))
    assert second == store.read("train-00000.parquet", start=groups[1].start, length=groups[1].length)
    assert [request[1:] for request in watched.requests] == [
        (groups[0].start, sum(group.length for group in groups[:3])),
        (groups[1].start, groups[1].length),
    ]
    assert take_retries() == 1


def test_what_stays_wrong_is_an_error_of_its_part_alone(mnist: Mnist) -> None:
    store, manifest = mnist
    groups = manifest.shards[0].groups
    watched: Any = Watched(store, lambda request, data: data[:-1] if request[1] == groups[7].start else data)
    good, bad = SpanReader(watched).fetch(parts_of(manifest, 0, 2, 7))
    assert isinstance(good, memoryview) and isinstance(bad, Fault)
    assert bad.reason == "unreadable" and bad.detail.startswith("row group 7 has sha256 ")
    assert take_retries() == 1


def test_the_next_item_is_fetched_while_one_is_used_and_no_further(mnist: Mnist) -> None:
    store, manifest = mnist
    items = [WorkItem(epoch=0, pieces=((0, group),), rows=32, image_size=28) for group in range(4)]
    asked = threading.Semaphore(0)

    def note(request: Request, data: bytes) -> bytes:
        asked.release()
        return data

    watched: Any = Watched(store, note)
    seen = []
    for number, (item, fetched) in enumerate(Reader(store=watched, manifest=manifest).ahead(items)):
        seen += fetched.result().table["id"].to_pylist()
        for _ in range(2 if number == 0 else 1):  # the footer came with the first
            assert asked.acquire(timeout=10)
        if number < 3:
            assert asked.acquire(timeout=10)  # the next one's, though nobody has asked for it yet
            asked.release()
        assert len(watched.requests) == min(number + 3, 5)
        assert item is items[number]
    assert seen == list(range(128))


def test_an_error_of_the_next_item_comes_with_the_next_item(mnist: Mnist) -> None:
    store, manifest = mnist
    start = manifest.shards[0].groups[1].start
    watched: Any = Watched(store, lambda request, data: data[:-1] if request[1] == start else data)
    items = [WorkItem(epoch=0, pieces=((0, group),), rows=32, image_size=28) for group in (0, 1)]
    ahead = Reader(store=watched, manifest=manifest).ahead(items)
    assert next(ahead)[1].result().table.num_rows == 32
    with pytest.raises(IntegrityError, match="row group 1"):
        next(ahead)[1].result()
