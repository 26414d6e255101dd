"""Object storage in a local folder, on a disk or a shared file system."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from infra.errors import UserError, refusal
from infra.storage.store import inside

_TEMPORARY = ".tmp"  # a name that starts with "." and ends with this is a write in progress or a killed one
_CREATE_ATTEMPTS = 1000  # a concurrent delete may remove a new folder before it has a file
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalStore:
    """A folder on a local disk or on a shared file system with hard links."""

    uri: str  # absolute path of the folder, which the first write creates

    @property
    def is_remote(self) -> bool:
        return False

    @property
    def description(self) -> str:
        return self.uri

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        with _as_user_error("read", self._at(path)), self._at(path).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        target = self._at(path)
        with _as_user_error("write", target):
            written = _commit(target, lambda file: file.write(data), if_absent=if_absent)
        if not written:
            raise FileExistsError(f"{target} exists")

    def put_file(self, path: str, local_path: str | Path) -> None:
        target = self._at(path)
        with Path(local_path).open("rb") as source, _as_user_error("write", target):
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
        with _as_user_error("remove", target):
            target.unlink(missing_ok=True)
        for folder in target.parents:  # object storage has no empty folders, so neither do we
            if folder == Path(self.uri) or not _removed_empty(folder):
                return

    def sub(self, prefix: str) -> LocalStore:
        return LocalStore(uri=str(self._at(prefix)))

    def check_access(self, *, write: bool) -> None:
        root = Path(self.uri)
        with _as_user_error("use", root):
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
            with _as_user_error("write to", root):
                _commit(probe, lambda file: file.write(b"?"), if_absent=True)
                probe.unlink()
        finally:
            for folder in missing:  # the first write makes them again
                _removed_empty(folder)

    def _at(self, path: str) -> Path:
        return Path(self.uri, inside(path))

    def _stat(self, path: str) -> os.stat_result | None:
        """Return the status of an object, or None if there is no object."""
        target = self._at(path)
        try:
            with _as_user_error("read", target):
                found = target.stat()
        except FileNotFoundError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None


def _commit(target: Path, fill: Callable[[IO[bytes]], object], *, if_absent: bool = False) -> bool:
    """Write an object; return False if `if_absent` is set and the object exists."""
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
def _as_user_error(doing: Literal["read", "write", "write to", "remove", "use"], place: Path) -> Iterator[None]:
    """Turn an error of the file system into one line for the user.

    Raises:
        FileNotFoundError: there is no file to read; the caller decides what that means.
        UserError: any other error of the file system.
    """
    try:
        yield
    except OSError as error:
        if doing == "read" and error.errno in _ABSENT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from None
        raise UserError(refusal(error, f"{doing} {place}")) from error


def _unlisted(error: OSError) -> None:
    """Raise UserError for a folder that cannot be listed; a missing folder is empty."""
    if error.errno not in _ABSENT:
        raise UserError(refusal(error, f"list {error.filename}")) from error


def _create(temporary: Path) -> IO[bytes]:
    """Open a new file and make its folders, even while a concurrent delete removes folders that become empty."""
    for _ in range(_CREATE_ATTEMPTS):
        _make_folder(temporary.parent)
        with suppress(FileNotFoundError):
            return temporary.open("xb")
    raise FileNotFoundError(errno.ENOENT, "no folder can be made there", str(temporary.parent))  # as in /proc


def _linked(temporary: Path, target: Path) -> bool:
    """Give a file its final name; return False if another file has the name."""
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
    except FileNotFoundError:  # a concurrent delete removed the parent
        return
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut: the entry is the folder's data, not the file's."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # a concurrent delete removed the folder: nothing is left to make durable
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
