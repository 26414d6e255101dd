"""Object storage by URI: one small interface over a local folder and S3.

    store = open_store("s3://bucket/prefix")        # or "/data/shards", "file:///data/shards", "runs/demo"
    store.write("manifest.json", data, if_absent=True)

Both stores promise the same: an object appears whole or not at all, ``if_absent`` has exactly one winner among any
number of concurrent writers, and what a returned ``write`` stored survives a crash. Endpoint and credentials come from
the environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...; boto3's own chain) and are never kept in a store, so
a store is a few bytes to pickle.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Literal, Protocol
from urllib.parse import unquote, urlsplit

from infra.errors import UserError, refusal

if TYPE_CHECKING:
    import pyarrow.fs

_TEMPORARY = ".tmp"  # a name that starts with "." and ends with this is a write under way, or one that was killed
_CREATE_ATTEMPTS = 1000  # a concurrent delete may prune a folder between its making and its first file
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Parameters of the S3 URIs of other libraries, secrets among them; any other "?" or "#" is part of a key.
_PARAMETERS = re.compile(r"\?(.*&)?(access_key|secret_key|session_token|endpoint_override|endpoint_url|region|scheme)=")


class Store(Protocol):
    """Objects under one root. Every path is relative to it, with "/" between its parts.

    What storage refuses for another reason than those listed here (a full disk, missing rights) is a `UserError`.
    """

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


def environment_of_s3() -> dict[str, str]:
    """Return the variables that pyarrow needs, in all processes, where S3 is served below a path, as behind a gateway.

    By itself it sends uploads in pieces with a checksum after them, which gateways may not understand; boto3 does not.
    """
    from infra.s3 import configured_endpoint

    if urlsplit(configured_endpoint()).path.strip("/"):
        return {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    return {}


def _arrow_s3() -> pyarrow.fs.S3FileSystem:
    """S3 as pyarrow sees it, from the same environment as boto3; the AWS SDK in it finds the credentials by itself."""
    import pyarrow.fs

    from infra.s3 import configured_endpoint

    endpoint = urlsplit(configured_endpoint())
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pyarrow.fs.S3FileSystem(
        endpoint_override=f"{endpoint.netloc}{endpoint.path.rstrip('/')}" or None,
        scheme=endpoint.scheme or "https",
        region=region or ("us-east-1" if endpoint.netloc else None),
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=10),
    )


def _parse(uri: str) -> tuple[str, str]:
    """("file", absolute folder) or ("s3", the URI without a trailing slash)."""
    if not uri:
        raise UserError("the storage location is empty: give a local folder or s3://bucket/prefix")
    if _CONTROL.search(uri):
        raise UserError(f"the storage location {uri!r} has a control character in it: give one without")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "file", _local(uri)
    if scheme == "file":
        return "file", _local_of_uri(uri, rest)
    if scheme != "s3":
        raise UserError(f"storage location {scheme}://… is not supported: give a local folder or s3://bucket/prefix")
    bucket, _, key = rest.partition("/")  # a key is what it is: "#", "?" and "%" are parts of it
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket) or _PARAMETERS.search(key):
        raise UserError("an S3 location reads s3://bucket/prefix; endpoint and credentials belong in the environment")
    return "s3", f"s3://{bucket}/{inside(key.strip('/'))}".rstrip("/")


def _local(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"{path}: no home folder is known for {path.partition('/')[0]}: give ./{path} or another folder"
        )
    return os.path.abspath(expanded)


def _local_of_uri(uri: str, rest: str) -> str:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost") or "?" in path or "#" in path:
        form = "file:///folder, on this machine, with %3F for ? and %23 for #"
        raise UserError(f"a file URI reads {form}: give the folder itself instead")
    if _CONTROL.search(path := unquote(path)):
        raise UserError(f"the storage location {uri!r} has a control character in it: give one without")
    return os.path.abspath(f"/{path}")


def inside(path: str) -> str:
    """``path`` itself, if it stays below the root of a store.

    Raises:
        UserError: it is absolute or climbs; a manifest that others wrote may try.
    """
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise UserError(f"{path!r} leads out of its storage location: paths are relative and have no '..'")
    if "\0" in path:
        raise UserError(f"{path!r} has a NUL in it: no file can have that name")
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalStore:
    """A folder, on a local disk or a shared file system that has hard links."""

    uri: str  # absolute path of the folder, which the first write creates

    @property
    def description(self) -> str:
        return self.uri

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        with _in_one_line("read", self._at(path)), self._at(path).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        target = self._at(path)
        with _in_one_line("write", target):
            written = _commit(target, lambda file: file.write(data), if_absent=if_absent)
        if not written:
            raise FileExistsError(f"{target} exists")

    def put_file(self, path: str, local_path: str | Path) -> None:
        target = self._at(path)
        with Path(local_path).open("rb") as source, _in_one_line("write", target):
            _commit(target, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def size(self, path: str) -> int | None:
        found = self._stat(path)
        return found.st_size if found else None

    def exists(self, path: str) -> bool:
        return self._stat(path) is not None

    def version(self, path: str) -> str:
        found = self._stat(path)
        return str(found.st_mtime_ns) if found else ""

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        found = []
        for folder, _, names in os.walk(self._at(prefix), onerror=_unlisted):
            for name in names:
                path = Path(folder, name).relative_to(self.uri).as_posix()
                temporary = name.startswith(".") and name.endswith(_TEMPORARY)
                if not temporary and (size := self.size(path)) is not None:  # None: deleted meanwhile
                    found.append((path, size))
        return sorted(found)

    def delete(self, path: str) -> None:
        target = self._at(path)
        with _in_one_line("remove", target):
            target.unlink(missing_ok=True)
        for folder in target.parents:  # object storage has no empty folders, so neither do we
            if folder == Path(self.uri) or not _removed_empty(folder):
                return

    def sub(self, prefix: str) -> LocalStore:
        return LocalStore(uri=str(self._at(prefix)))

    def check_access(self, *, write: bool) -> None:
        root = Path(self.uri)
        with _in_one_line("use", root):
            if root.exists() and not root.is_dir():
                raise UserError(f"{self.uri} is a file: give a folder")
            missing = [folder for folder in (root, *root.parents) if not folder.exists()]
            astray = next((folder for folder in missing if folder.is_symlink()), None)
        if astray:
            raise UserError(f"{astray} is a link that leads nowhere: make the folder it names, or give another")
        if not write:
            if missing:
                raise UserError(f"there is no folder {self.uri}")
            return
        probe = Path(root, f".access-{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            with _in_one_line("write to", root):
                _commit(probe, lambda file: file.write(b"?"), if_absent=True)
                probe.unlink()
        finally:
            for folder in missing:  # the first write makes them again
                _removed_empty(folder)

    def _at(self, path: str) -> Path:
        return Path(self.uri, inside(path))

    def _stat(self, path: str) -> os.stat_result | None:
        """Of an object; None where there is none."""
        target = self._at(path)
        try:
            with _in_one_line("read", target):
                found = target.stat()
        except FileNotFoundError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None


def _commit(target: Path, fill: Callable[[IO[bytes]], object], *, if_absent: bool = False) -> bool:
    """Write an object; False where there was to be none, and there is one."""
    temporary = target.parent / f".{uuid.uuid4().hex}{_TEMPORARY}"
    try:
        with _create(temporary) as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if not if_absent:
            os.replace(temporary, target)
        elif not _linked(temporary, target):
            return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


@contextmanager
def _in_one_line(doing: Literal["read", "write", "write to", "remove", "use"], place: Path) -> Iterator[None]:
    """Turn what the file system refuses into a line for the user; a file to read that is not there is for the caller.

    Raises:
        FileNotFoundError: nothing is there to read.
        UserError: anything else.
    """
    try:
        yield
    except OSError as error:
        if doing == "read" and error.errno in _ABSENT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from None
        raise UserError(refusal(error, f"{doing} {place}")) from error


def _unlisted(error: OSError) -> None:
    """Called for a folder whose names cannot be read: one that is not there has none."""
    if error.errno not in _ABSENT:
        raise UserError(refusal(error, f"list {error.filename}")) from error


def _create(temporary: Path) -> IO[bytes]:
    """Open a new file and the folders above it, even while a concurrent delete prunes the ones it empties."""
    for _ in range(_CREATE_ATTEMPTS):
        _make_folder(temporary.parent)
        with suppress(FileNotFoundError):
            return temporary.open("xb")
    raise FileNotFoundError(errno.ENOENT, "no folder can be made there", str(temporary.parent))  # as in /proc


def _linked(temporary: Path, target: Path) -> bool:
    """Give a file its name, unless another has it."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise OSError(error.errno, "its file system has no hard links", str(target)) from error
        raise
    return True


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:  # the parent was pruned in between
        return
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
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
