"""The faults of a bad day on a real S3 server: repeated until they have passed, counted, and told of at the end."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import infra.storage.s3
from infra.errors import UserError
from infra.retry import pauses, take_retries
from infra.s3_proxy import Faults, Proxy, serve_proxy
from infra.s3_server import S3Server
from infra.storage import Store, open_store
from tests.waiting import wait_until

DATA = os.urandom(300_000)


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setitem(infra.storage.s3._TIMEOUT_S, "read", 0.7)
    infra.storage.s3._make_client.cache_clear()
    with serve_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
    infra.storage.s3._make_client.cache_clear()


@pytest.fixture
def store(proxy: Proxy) -> Store:
    store = open_store(f"s3://tests/{uuid.uuid4().hex}")
    store.write("object", DATA)
    take_retries()
    return store


@pytest.mark.parametrize("fault", ["slow_down", "reset", "short", "stall", "error_page"])
def test_a_fault_is_repeated_until_the_object_comes(proxy: Proxy, store: Store, fault: str) -> None:
    proxy.faults = Faults(**{fault: 0.2 if fault == "stall" else 0.4}, stall_s=2.0)
    for time_read in range(50):
        assert store.read("object") == DATA
        assert store.read("object", start=1000, length=200_000) == DATA[1000:201_000]
        if time_read > 4 and proxy.seen[fault]:
            break
    assert proxy.seen[fault] >= 1
    assert take_retries() >= proxy.seen[fault]  # more where a busy machine kept an answer waiting


def test_writes_listings_and_commits_pass_through_slow_down(proxy: Proxy, store: Store) -> None:
    proxy.faults = Faults(slow_down=0.4)
    store.write("commit", b"mine", if_absent=True)
    with pytest.raises(FileExistsError):
        store.write("commit", b"theirs", if_absent=True)
    assert store.list() == [("commit", 4), ("object", len(DATA))]
    store.delete("commit")
    assert store.size("commit") is None


def test_refusals_are_not_repeated(proxy: Proxy, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = proxy.seen["requests"]
    with pytest.raises(FileNotFoundError):
        store.read("none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(UserError, match=f"{proxy.endpoint} refuses access to bucket 'tests'") as caught:
        store.read("object")
    assert "not-the-secret" not in str(caught.value)
    assert (proxy.seen["requests"] - before, take_retries()) == (2, 0)


def test_patience_ends(proxy: Proxy, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.storage.s3, "_RETRY_FOR_S", 1.0)
    proxy.faults = Faults(reset=1.0)
    with pytest.raises(UserError, match=rf"no S3 server answers at {proxy.endpoint} for .*: check AWS_ENDPOINT_URL"):
        store.read("object")
    assert take_retries() >= 1


def test_a_server_that_is_away_is_waited_for(proxy: Proxy, store: Store) -> None:
    there, proxy.target = proxy.target, "http://127.0.0.1:1"
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(store.read, "object")
        wait_until(lambda: proxy.seen["away"] >= 2, 25)  # it asked, and asked again
        assert not reading.done()
        proxy.target = there
        assert reading.result(timeout=60) == DATA
    assert take_retries() >= 2


def test_every_request_is_delayed(proxy: Proxy, store: Store) -> None:
    proxy.delay_ms = 120
    began = time.monotonic()
    store.read("object")
    assert time.monotonic() - began >= 0.12


def test_pauses_grow_with_full_jitter_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, bounds = 0.0, []
    monkeypatch.setattr("infra.retry.time.monotonic", lambda: now)

    def drawn(least: float, most: float) -> float:
        assert least == 0
        bounds.append(most)
        return most / 2

    monkeypatch.setattr("infra.retry.random.uniform", drawn)
    for pause in pauses(30.0):
        now += pause
    assert bounds[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert set(bounds[7:]) == {10.0}
    assert 25.0 < now <= 30.0
