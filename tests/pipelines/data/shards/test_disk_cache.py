"""The node's cache: whole entries or none, never above its cap, and training goes on without it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.storage import LocalStore
from pipelines.config.sections import CacheConfig
from pipelines.data.shards import reader as read
from pipelines.data.shards.disk_cache import SpanCache, open_cache
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import Reader
from pipelines.data.shards.work_item import WorkItem

ROOT = Path(__file__).parents[4]


def entry(number: int, size: int = 1000) -> tuple[str, memoryview]:
    data = bytes([number]) * size
    return hashlib.sha256(data).hexdigest(), memoryview(data)


def entries(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.glob("??/*")}


def test_what_is_put_is_there_for_another_process_too(tmp_path: Path) -> None:
    sha256, data = entry(1)
    cache = SpanCache(tmp_path / "cache", 10_000)
    assert cache.get(sha256) is None
    cache.put(sha256, data)
    assert SpanCache(tmp_path / "cache", 10_000).get(sha256) == data
    assert entries(tmp_path / "cache") == {sha256: 1000}


def test_the_cap_is_kept_and_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    cache = SpanCache(tmp_path, 10_000)
    put = [entry(number) for number in range(14)]
    for age, (sha256, data) in enumerate(put):
        if age == 10:  # the cap is reached: the first one is used again, the others are as old as they came
            for number, (old, _) in enumerate(put[:10]):
                os.utime(tmp_path / old[:2] / old, (number, number))
            assert cache.get(put[0][0]) == put[0][1]
        cache.put(sha256, data)
        assert sum(entries(tmp_path).values()) <= 10_000
    assert put[0][0] in entries(tmp_path) and put[13][0] in entries(tmp_path)
    assert put[1][0] not in entries(tmp_path) and put[2][0] not in entries(tmp_path)


def test_an_entry_that_was_damaged_is_no_entry(tmp_path: Path) -> None:
    sha256, data = entry(1)
    cache = SpanCache(tmp_path, 10_000)
    cache.put(sha256, data)
    file = tmp_path / sha256[:2] / sha256
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert cache.get(sha256) is None
    assert entries(tmp_path) == {}
    cache.put(sha256, data)
    assert cache.get(sha256) == data


def test_more_than_the_cap_is_not_kept(tmp_path: Path) -> None:
    cache = SpanCache(tmp_path, 500)
    cache.put(*entry(1))
    assert (entries(tmp_path), cache.take_warning()) == ({}, "")


def test_a_full_disk_ends_the_writing_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SpanCache(tmp_path, 10_000)
    cache.put(*entry(1))

    def full(path: Path, size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", full)
        cache.put(*entry(2))
    cache.put(*entry(3))
    assert cache.take_warning() == (
        f"data.cache_dir {tmp_path} on {os.uname().nodename} cannot be written: No space left on device; "
        "training continues without it"
    )
    assert cache.take_warning() == ""
    assert entries(tmp_path) == {entry(1)[0]: 1000}
    assert cache.get(entry(1)[0]) == entry(1)[1]


WRITER = """
import hashlib, sys
from pathlib import Path
from pipelines.data.shards.disk_cache import SpanCache
cache = SpanCache(Path(sys.argv[1]), 100_000)
for number in range(150):
    data = str(number % 75 + 60 * int(sys.argv[2])).encode() * 1000
    sha256 = hashlib.sha256(data).hexdigest()
    cache.put(sha256, memoryview(data))
    found = cache.get(sha256)
    assert found is None or found == data
    with cache._used():
        total = sum(file.stat().st_size for file in cache.folder.glob("??/*"))
    assert total <= 100_000, total
"""


def test_several_processes_share_one_cache(tmp_path: Path) -> None:
    ran = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)], cwd=ROOT, stderr=subprocess.PIPE)
        for number in range(3)
    ]
    assert [process.communicate()[1].decode() for process in ran] == [""] * 3
    kept = entries(tmp_path)
    assert 50_000 < sum(kept.values()) <= 100_000
    for name in kept:
        assert hashlib.sha256((tmp_path / name[:2] / name).read_bytes()).hexdigest() == name


def test_a_second_epoch_asks_the_storage_for_nothing(
    mnist: tuple[LocalStore, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, manifest = mnist
    asked: list[str] = []

    class Counting:
        description = "counting"

        def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
            asked.append(path)
            return store.read(path, start=start, length=length)

    counting: Any = Counting()
    item = WorkItem(epoch=0, pieces=((0, 0), (0, 1), (0, 5)), rows=96, image_size=28)
    config = CacheConfig(folder=str(tmp_path / "cache"), cap_bytes=10**8)
    for epoch, requests in enumerate((3, 0)):  # the footer, two neighbouring row groups at once, another row group
        monkeypatch.setattr(read, "_footers", read._Footers())
        asked.clear()
        rows = Reader(store=counting, manifest=manifest, cache=open_cache(config)).fetch(item).table
        assert rows["id"].to_pylist() == [*range(64), *range(160, 192)]
        assert len(asked) == requests, epoch
