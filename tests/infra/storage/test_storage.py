"""The promises of a store, held against a folder and against a real S3 server."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import infra.storage.s3
from infra.errors import UserError
from infra.s3_server import S3Server
from infra.storage import Store, open_store, pyarrow_filesystem


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return open_store(f"s3://tests/{uuid.uuid4().hex}/prefix")


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b.bin", b"0123456789")
    store.write("a/b.bin", b"abcdefghij")
    assert store.read("a/b.bin") == b"abcdefghij"
    assert store.size("a/b.bin") == 10
    assert store.exists("a/b.bin")
    assert not store.exists("a")


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 3, b"012"), (4, 2, b"45"), (8, None, b"89"), (8, 100, b"89"), (10, 5, b""), (50, None, b""), (3, 0, b"")],
)
def test_ranges_are_those_of_a_slice(store: Store, start: int, length: int | None, expected: bytes) -> None:
    store.write("digits", b"0123456789")
    assert store.read("digits", start=start, length=length) == expected


def test_empty_object(store: Store) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.size("empty") == 0


def test_absent_object(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing/here")
    with pytest.raises(FileNotFoundError):
        store.read("nothing/here", start=3, length=0)
    assert store.size("nothing/here") is None
    store.delete("nothing/here")


def test_exactly_one_of_eight_writers_wins(store: Store) -> None:
    def attempt(writer: int) -> bool:
        try:
            store.write("commit.json", f"writer {writer}".encode(), if_absent=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1
    assert store.read("commit.json") == f"writer {won.index(True)}".encode()


def test_list_is_recursive_sorted_and_relative_to_the_root(store: Store) -> None:
    for path in ("b", "a/2", "a/1/x", "ab"):
        store.write(path, path.encode())
    assert store.list() == [("a/1/x", 5), ("a/2", 3), ("ab", 2), ("b", 1)]
    assert store.list("a") == [("a/1/x", 5), ("a/2", 3)]
    assert store.list("none") == []
    assert store.sub("a").list() == [("1/x", 5), ("2", 3)]
    assert store.sub("a").read("2") == b"a/2"


def test_deleting_leaves_nothing_behind(store: Store) -> None:
    store.write("step-1/weights", b"1")
    store.delete("step-1/weights")
    assert store.list() == []
    if not store.uri.startswith("s3"):
        assert list(Path(store.uri).iterdir()) == []


def test_put_file_beyond_one_part(store: Store, tmp_path: Path) -> None:
    data = os.urandom((16 << 20) + 12_345)
    source = tmp_path / "weights"
    source.write_bytes(data)
    store.put_file("checkpoint/weights", source)
    assert store.size("checkpoint/weights") == len(data)
    assert store.read("checkpoint/weights", start=(16 << 20) - 5, length=10) == data[(16 << 20) - 5 :][:10]


def test_a_store_travels_to_another_process_without_secrets(store: Store, s3_server: S3Server) -> None:
    store.write("x", b"1")
    carried = pickle.dumps(store)
    assert s3_server.secret_key.encode() not in carried
    assert len(carried) < 300
    assert pickle.loads(carried).read("x") == b"1"


def test_access_is_granted(store: Store) -> None:
    store.check_access(write=True)
    assert store.list() == []


def test_pyarrow_sees_the_same_objects(store: Store) -> None:
    store.write("part/x", b"123")
    filesystem, path = pyarrow_filesystem(store.uri)
    with filesystem.open_input_file(f"{path}/part/x") as file:
        assert file.read() == b"123"
    with filesystem.open_output_stream(f"{path}/part/y") as file:
        file.write(b"45")
    assert store.read("part/y") == b"45"


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd"])
def test_paths_stay_inside(store: Store, path: str) -> None:
    with pytest.raises(UserError, match="leads out"):
        store.write(path, b"")


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("gs://bucket/x", "gs://… is not supported"),
        ("s3://key:secret@bucket/x", "credentials belong in the environment"),
        ("s3:///x", "s3://bucket/prefix"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://bucket/x?access_key=secret", "credentials belong in the environment"),
        ("s3://bucket/x?a=1&endpoint_override=secret", "credentials belong in the environment"),
        ("file:///data?x=secret", "file URI reads file:///folder"),
        ("file://host/data", "file URI reads file:///folder"),
        ("file:///data%00", "control character"),
        ("data\nset", "control character"),
        ("data\0", "control character"),
        ("~nobody-here/x", "no home folder is known for ~nobody-here"),
        ("", "is empty"),
    ],
)
def test_other_locations_are_refused(uri: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_local_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("runs/demo").uri == str(tmp_path / "runs/demo")
    for name in ("with space", "with#hash", "with?mark", "with%20percent"):
        assert open_store((tmp_path / name).as_uri()).uri == str(tmp_path / name)
        assert open_store(str(tmp_path / name)).uri == str(tmp_path / name)


def test_a_failed_local_write_leaves_the_old_object_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    store.write("manifest.json", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device: free some space there"):
        store.write("manifest.json", b"new")
    assert store.read("manifest.json") == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_an_interrupted_write_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".weights.0123.tmp").write_bytes(b"half")
    assert open_store(str(tmp_path)).list() == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file is a file: give a folder"):
        open_store(str(tmp_path / "file")).check_access(write=True)
    with pytest.raises(UserError, match=r"cannot write to .*/file/below: Not a directory"):
        open_store(str(tmp_path / "file/below")).check_access(write=True)
    with pytest.raises(UserError, match="there is no folder"):
        open_store(str(tmp_path / "none")).check_access(write=False)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_what_the_disk_refuses_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(UserError) as caught:
        store.write("a/shard", b"data", if_absent=call == "link")
    assert str(caught.value).startswith(f"cannot write {tmp_path}/store/a/shard: {os.strerror(number)}: ")
    assert not list(tmp_path.rglob("*.tmp"))
    if call != "replace":
        with pytest.raises(UserError, match=f"cannot write to {tmp_path}/store: {os.strerror(number)}: "):
            store.check_access(write=True)


def test_a_folder_that_nothing_can_be_made_in_is_refused_at_once() -> None:
    """In /proc every name is absent, also after it was made: a loop that waits for it would never end."""
    with pytest.raises(UserError, match="cannot write to /proc/nope: "):
        open_store("/proc/nope").check_access(write=True)
    with pytest.raises(UserError, match="cannot write /proc/nope/x: "):
        open_store("/proc/nope").write("x", b"")


def test_checking_a_place_leaves_no_folders(tmp_path: Path) -> None:
    open_store(str(tmp_path / "a/b")).check_access(write=True)
    with pytest.raises(UserError, match="File name too long: choose a shorter name"):
        open_store(str(tmp_path / "c" / ("x" * 300))).check_access(write=True)
    assert list(tmp_path.iterdir()) == []


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for place, link in [("dangling", "dangling"), ("dangling/below", "dangling"), ("loop", "loop")]:
        with pytest.raises(UserError, match=f"{tmp_path}/{link} is a link that leads nowhere"):
            open_store(str(tmp_path / place)).check_access(write=True)


def test_a_file_system_without_hard_links_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}: its file system has no hard links"):
        open_store(str(tmp_path)).check_access(write=True)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path))
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/folder: Is a directory"):
        store.read("folder")
    with pytest.raises(FileNotFoundError):
        store.read("file/below")
    assert not store.exists("file/below")
    with pytest.raises(UserError, match="has a NUL in it"):
        store.write("a\0b", b"")


@pytest.mark.parametrize("name", ["exp#2", "exp?2", "exp%232", "exp 2", "exp+2", "exp;2", "exp&x=1", "exp=2", "é"])
def test_a_name_is_exactly_what_it_is(store: Store, name: str) -> None:
    """No URL parser reads it again: `exp#2` is not `exp`, nor `exp%232` `exp#2`."""
    store.write("exp/x", b"another")
    below = open_store(store.sub(name).uri)
    assert not below.exists("x")
    below.write("x", name.encode(), if_absent=True)
    below.write(f"{name}/{name}", b"")
    assert below.list() == sorted([("x", len(name.encode())), (f"{name}/{name}", 0)])
    assert store.read(f"{name}/x") == name.encode()
    assert store.read("exp/x") == b"another"
    filesystem, path = pyarrow_filesystem(below.uri)
    with filesystem.open_input_file(f"{path}/x") as file:
        assert file.read() == name.encode()
    with filesystem.open_output_stream(f"{path}/y") as file:
        file.write(b"45")
    assert store.read(f"{name}/y") == b"45"


def _denied(store: Store) -> str:
    with pytest.raises(UserError) as caught:
        store.check_access(write=True)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_wrong_secret(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    line = _denied(open_store("s3://tests/x"))
    assert f"{s3.endpoint} refuses access to bucket 'tests' (SignatureDoesNotMatch)" in line
    assert "not-the-secret" not in line


def test_unknown_key(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    assert "refuses access to bucket 'tests' (InvalidAccessKeyId)" in _denied(open_store("s3://tests/x"))


def test_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no usable S3 credentials for s3://tests/x: set AWS_ACCESS_KEY_ID" in _denied(open_store("s3://tests/x"))


def test_missing_bucket_says_how_to_create_it(s3: S3Server) -> None:
    line = _denied(open_store("s3://no-such-bucket/x"))
    assert f"there is no bucket 'no-such-bucket' at {s3.endpoint}" in line
    assert "create-bucket --bucket no-such-bucket" in line


def test_nobody_at_the_endpoint(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:password@127.0.0.1:{port}")
    line = _denied(open_store("s3://tests/x"))
    assert f"no S3 server answers at http://127.0.0.1:{port}" in line
    assert "password" not in line


@pytest.mark.faults
def test_a_silent_endpoint(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "(ReadTimeoutError)" in _denied(open_store("s3://tests/x"))


def test_an_endpoint_that_is_no_url(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    assert "AWS_ENDPOINT_URL is 'localhost:8333', which is not a URL" in _denied(open_store("s3://tests/x"))


class _Faulty:
    """A real client whose first call of one method goes wrong."""

    def __init__(self, client: Any, method: str, fault: Callable[..., Any]) -> None:
        self._client, self._method, self._fault = client, method, fault
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name != self._method:
            return real

        def call(**arguments: Any) -> Any:
            self.calls += 1
            return self._fault(real, **arguments) if self.calls == 1 else real(**arguments)

        return call


def _install(monkeypatch: pytest.MonkeyPatch, method: str, fault: Callable[..., Any]) -> _Faulty:
    faulty = _Faulty(infra.storage.s3._client(), method, fault)
    monkeypatch.setattr(infra.storage.s3, "_client", lambda _="": faulty)
    return faulty


def test_a_short_answer_is_asked_for_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://tests/{uuid.uuid4().hex}")
    store.write("x", b"0123456789")

    class Short:
        def read(self) -> bytes:
            return b"3"

    faulty = _install(monkeypatch, "get_object", lambda real, **arguments: {**real(**arguments), "Body": Short()})
    assert store.read("x", start=3, length=4) == b"3456"
    assert faulty.calls == 2


def test_a_commit_whose_answer_was_lost_is_known_as_ours(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ConnectionClosedError

    def lose_the_answer(real: Callable[..., Any], **arguments: Any) -> None:
        real(**arguments)
        raise ConnectionClosedError(endpoint_url=s3.endpoint)

    store = open_store(f"s3://tests/{uuid.uuid4().hex}")
    faulty = _install(monkeypatch, "put_object", lose_the_answer)
    store.write("commit", b"mine", if_absent=True)
    assert faulty.calls == 2
    with pytest.raises(FileExistsError):
        store.write("commit", b"theirs", if_absent=True)
    assert store.read("commit") == b"mine"
