"""Before Ray starts or is joined: every kind of trouble is one line in a bounded time, or mended."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import infra.cluster
import infra.ray_start
from infra.errors import UserError
from infra.local_ray import start
from infra.ray_start import check_head, ray_folder, short_folder, use_own_token


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Nothing of Ray's in it, and afterwards what was there before."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def long_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_tmpdir_too_long_for_sockets_is_not_taken(long_tmpdir: Path) -> None:
    assert ray_folder() == "/tmp/ray"
    assert short_folder(20) == "/tmp"


def test_a_folder_of_ray_that_is_not_there_yet_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as above:
        monkeypatch.setenv("RAY_TMPDIR", f"{above}/new/ray")
        assert ray_folder() is None


def test_a_short_tmpdir_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert ray_folder() is None
    assert short_folder(20) is None


def test_a_long_tmpdir_where_nothing_shorter_can_be_written(long_tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        UserError, match=r"TMPDIR is too long for Ray's sockets .* set RAY_TMPDIR to a folder of at most"
    ):
        ray_folder()


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("/" + "x" * 90, "RAY_TMPDIR is too long for Ray's sockets"),
        ("/proc/nope", "Ray has no place for its files: cannot write to /proc/nope/ray"),
        ("/dev/null", "Ray has no place for its files: cannot write to /dev/null/ray: Not a directory"),
    ],
)
def test_an_odd_ray_tmpdir(folder: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(UserError, match=line):
        ray_folder()


def test_a_full_disk_is_found_before_ray_waits_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="Ray has no room for its files: 3 MiB are free in /tmp: free some space"):
        ray_folder()


def test_a_ray_of_ours_has_a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    use_own_token()
    file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert len(file.read_text()) == 64
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []
    file.unlink()


@pytest.mark.parametrize("name", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_the_environment_names_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "token")
    use_own_token()
    assert {key: value for key, value in os.environ.items() if key.startswith("RAY_AUTH")} == {name: "token"}


@pytest.fixture(params=["closed", "silent"])
def no_head(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where nothing listens, or something that says nothing."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if request.param == "silent":
            held.listen()
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_head_there(no_head: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.ray_start, "_HEAD_TIMEOUT_S", 1.0)
    with pytest.raises(UserError, match=f"no Ray cluster answers at {scheme}{no_head} .*: start the cluster, correct"):
        check_head(f"{scheme}{no_head}")


def test_the_address_of_a_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:8265, a job server: .* `ray job submit`"):
        check_head("http://127.0.0.1:8265")


class _Ray:
    """Ray's start, which fails as often as there are `failures`."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.starts = list(failures), 0

    def init(self, **_: Any) -> None:
        self.starts += 1
        if self.failures:
            raise self.failures.pop(0)

    def shutdown(self) -> None:
        pass

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_session_name=lambda: "session_of_this_ray")


@pytest.fixture(autouse=True)
def _no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "warm_up", lambda _: None)


_SLOW = Exception("The current node timed out during startup.\nThis could happen because some of the raylet failed")


def test_a_slow_start_is_tried_twice_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    at_exit: list[tuple[Any, ...]] = []
    monkeypatch.setattr("atexit.register", lambda *call: at_exit.append(call))
    ray = _Ray(_SLOW, _SLOW)
    infra.cluster._start(ray)
    assert ray.starts == 3
    assert at_exit == [(start._end_here, set(), "session_of_this_ray")]


@pytest.mark.parametrize(("failures", "starts"), [([_SLOW, _SLOW, _SLOW], 3), ([OSError(13, "Permission denied")], 1)])
def test_a_start_that_fails_is_one_line(
    failures: list[Exception], starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray = _Ray(*failures)
    with pytest.raises(
        UserError, match=r"Ray does not start on this machine: .*: the machine may be overloaded"
    ) as told:
        infra.cluster._start(ray)
    assert "\n" not in str(told.value)
    assert ray.starts == starts


@pytest.mark.parametrize("failure", [RuntimeError("Version mismatch:\n Ray 1"), Exception("x"), OSError(1, "no")])
def test_a_cluster_that_cannot_be_joined_is_one_line(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.cluster, "check_head", lambda _: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(UserError, match=r"no Ray cluster can be joined at 127.0.0.1:6379 \(RAY_ADDRESS\): .*correct"):
        infra.cluster._start(_Ray(failure))
