"""Object storage by URI: one small interface over a local folder and S3.

    store = open_store("s3://bucket/prefix")        # or "/data/shards", "file:///data/shards", "runs/demo"
    store.write("manifest.json", data, if_absent=True)

Both stores promise the same: an object appears whole or not at all, ``if_absent`` has exactly one winner among any
number of concurrent writers, and what a returned ``write`` stored survives a crash. Endpoint and credentials come from
the environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...; boto3's own chain) and are never kept in a store, so
a store is a few bytes to pickle.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from infra.errors import UserError

if TYPE_CHECKING:
    import pyarrow.fs

_TEMPORARY = ".tmp"  # a name that starts with "." and ends with this is a write under way, or one that was killed


class Store(Protocol):
    """Objects under one root. Every path is relative to it, with "/" between its parts."""

    @property
    def uri(self) -> str:
        """Absolute, and valid in every process and on every host that can reach the storage."""

    @property
    def description(self) -> str:
        """The root as messages name it: no secret in it."""

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Bytes [start, start + length) of an object; like a slice, less only where the object ends.

        Raises:
            FileNotFoundError: there is no such object.
        """

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store ``data`` atomically and durably.

        Raises:
            FileExistsError: ``if_absent`` and another writer was first; what it wrote is untouched.
        """

    def put_file(self, path: str, local_path: str | Path) -> None:
        """Store a local file of any size, atomically and durably."""

    def size(self, path: str) -> int | None:
        """Bytes of an object, or None where there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""

    def version(self, path: str) -> str:
        """Changes whenever the object is written anew, even with as many bytes; empty where there is none."""

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """(path, bytes) of every object under the folder ``prefix``, at any depth, sorted by path."""

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""

    def sub(self, prefix: str) -> Store:
        """The store rooted at the folder ``prefix`` of this one."""

    def check_access(self, *, write: bool) -> None:
        """Fail within about 15 s, in one line, where the root cannot be read (or written) as things stand.

        Raises:
            UserError: missing folder or bucket, unreachable endpoint, refused credentials, unwritable destination.
        """


def open_store(uri: str) -> Store:
    """The store at a local folder (absolute, relative to here, or ``file://``) or at ``s3://bucket/prefix``.

    Nothing is touched yet: ``check_access`` says whether the place can be used.

    Raises:
        UserError: the URI is of neither form.
    """
    scheme, path = _parse(uri)
    if scheme == "file":
        return LocalStore(uri=path)
    from infra.s3 import S3Store

    return S3Store(uri=path)


def pyarrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same place for libraries that speak pyarrow (Ray Train's ``storage_filesystem`` and ``storage_path``).

    It carries no credentials: each process that receives it finds its own in its environment.
    """
    scheme, path = _parse(uri)
    import pyarrow.fs

    if scheme == "s3":
        return _arrow_s3(), path.removeprefix("s3://")
    return pyarrow.fs.LocalFileSystem(), path


def _arrow_s3() -> pyarrow.fs.S3FileSystem:
    """S3 as pyarrow sees it, from the same environment as boto3; the AWS SDK in it finds the credentials by itself."""
    import pyarrow.fs

    from infra.s3 import configured_endpoint

    endpoint = urlsplit(configured_endpoint())
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or "https",
        region=region or ("us-east-1" if endpoint.netloc else None),
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=10),
    )


def _parse(uri: str) -> tuple[str, str]:
    """("file", absolute folder) or ("s3", the URI without a trailing slash)."""
    if "://" not in uri:
        if not uri:
            raise UserError("the storage location is empty: give a local folder or s3://bucket/prefix")
        return "file", os.path.abspath(os.path.expanduser(uri))
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return "file", os.path.abspath(unquote(parts.path))
    if parts.scheme != "s3":
        raise UserError(
            f"storage location {parts.scheme}://… is not supported: give a local folder or s3://bucket/prefix"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", parts.netloc) or parts.query or parts.fragment:
        raise UserError("an S3 location reads s3://bucket/prefix; endpoint and credentials belong in the environment")
    inside(parts.path.strip("/"))
    return "s3", f"s3://{parts.netloc}{parts.path}".rstrip("/")


def inside(path: str) -> str:
    """``path`` itself, if it stays below the root of a store.

    Raises:
        UserError: it is absolute or climbs; a manifest that others wrote may try.
    """
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise UserError(f"{path!r} leads out of its storage location: paths are relative and have no '..'")
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalStore:
    """A folder, on a local disk or a shared file system that has hard links."""

    uri: str  # absolute path of the folder, which the first write creates

    @property
    def description(self) -> str:
        return self.uri

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        with self._at(path).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        self._commit(self._at(path), lambda file: file.write(data), if_absent=if_absent)

    def put_file(self, path: str, local_path: str | Path) -> None:
        with Path(local_path).open("rb") as source:
            self._commit(self._at(path), lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def size(self, path: str) -> int | None:
        target = self._at(path)
        return target.stat().st_size if target.is_file() else None

    def exists(self, path: str) -> bool:
        return self._at(path).is_file()

    def version(self, path: str) -> str:
        target = self._at(path)
        return str(target.stat().st_mtime_ns) if target.is_file() else ""

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        found = []
        for folder, _, names in os.walk(self._at(prefix)):
            for name in names:
                path = Path(folder, name).relative_to(self.uri).as_posix()
                temporary = name.startswith(".") and name.endswith(_TEMPORARY)
                if not temporary and (size := self.size(path)) is not None:  # None: deleted meanwhile
                    found.append((path, size))
        return sorted(found)

    def delete(self, path: str) -> None:
        target = self._at(path)
        target.unlink(missing_ok=True)
        for folder in target.parents:  # object storage has no empty folders, so neither do we
            if folder == Path(self.uri) or not _removed_empty(folder):
                return

    def sub(self, prefix: str) -> LocalStore:
        return LocalStore(uri=str(self._at(prefix)))

    def check_access(self, *, write: bool) -> None:
        root = Path(self.uri)
        if root.exists() and not root.is_dir():
            raise UserError(f"{self.uri} is a file: give a folder")
        if not write:
            if not root.is_dir():
                raise UserError(f"there is no folder {self.uri}")
            return
        probe = f".access-{uuid.uuid4().hex}{_TEMPORARY}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise UserError(f"cannot write to {self.uri}: {error.strerror or error}") from error

    def _at(self, path: str) -> Path:
        return Path(self.uri, inside(path))

    def _commit(self, target: Path, fill: Callable[[IO[bytes]], object], *, if_absent: bool = False) -> None:
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}{_TEMPORARY}"
        try:
            with _create(temporary) as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if if_absent:
                os.link(temporary, target)
            else:
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def _create(temporary: Path) -> IO[bytes]:
    """Open a new file and the folders above it, even while a concurrent delete prunes the ones it empties."""
    while True:
        _make_folder(temporary.parent)
        try:
            return temporary.open("xb")
        except FileNotFoundError:
            continue


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:  # the parent was pruned in between
        return
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut: the entry is the folder's data, not the file's."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # pruned by a concurrent delete: nothing is left to make durable
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _removed_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
